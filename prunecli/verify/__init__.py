"""The verifier: proofs that a result computes what a reference does, and that stored tensors are as decided."""
