"""Regularisers of the weights: registered functions whose names are flags holding their
strength.
"""
