"""transformers' continuous batching as an engine: `engine: cuda-hf`."""
