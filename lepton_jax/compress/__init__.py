"""Compression as transforms of named arrays and of layer inputs; models know nothing of it."""
