"""Recovery of what pruning lost: training that keeps zeros and structure, distillation."""
