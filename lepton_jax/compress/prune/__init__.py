"""Pruning: what ranks weights, what goes at once, how much of each kernel, and when."""
