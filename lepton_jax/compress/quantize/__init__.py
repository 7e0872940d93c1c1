"""Quantisation-aware training: rounding of kernels (weights) and of inputs, and where (sites)."""
