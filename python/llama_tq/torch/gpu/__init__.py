"""The operators in Triton, for NVIDIA GPUs; imported when a tensor there first needs them."""
