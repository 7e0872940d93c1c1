"""Experiment scripts: `python -m experiments.NAME` or `./launch.sh NAME`."""
