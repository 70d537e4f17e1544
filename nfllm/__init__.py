"""nfllm: the workbench for normalization-free decoder language models, in JAX."""
