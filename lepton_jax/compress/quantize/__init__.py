"""Quantisation-aware training: rounding with straight-through gradients (quantizers), and where it happens (sites)."""
