"""Triton kernels; each has a twin in plain PyTorch that it is tested against."""
