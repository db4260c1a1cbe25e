"""TurboQuant KV-cache types for llama.cpp."""
