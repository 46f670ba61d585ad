"""Training inside onnxruntime: steps, optimisers, checkpoints, and `finetune`."""
