"""Many runs from one command: a grid of trials, executors that train them, tables of what they found."""
