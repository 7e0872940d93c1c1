"""Layers of a CPU in C++: compiled at first use, called from inside JAX programs."""
