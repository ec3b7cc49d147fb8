"""Where vLLM has it."""
