"""Many runs from one command: grids of trials, executors that train them, tables of results."""
