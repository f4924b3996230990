"""vLLM as an engine: `engine: cuda-vllm`."""
