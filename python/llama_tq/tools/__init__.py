"""Measuring, comparing and planning on real models; what the command `llama-tq` calls."""
