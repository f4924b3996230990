"""TensorRT-LLM's PyTorch runtime as an engine: `engine: cuda-trt` with a PyTorch-era package."""
