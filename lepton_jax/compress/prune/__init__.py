"""Pruning: what ranks the weights (scores), how many go when (schedule), which ones they are (masks)."""
