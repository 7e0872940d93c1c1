"""Training: the state, the pure step, and what runs it. Start with state.py and step.py."""
