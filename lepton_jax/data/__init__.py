"""Data sets as arrays: where they come from, how they are split, how batches are drawn."""
