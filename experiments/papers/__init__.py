"""Published results, one script a paper."""
