"""Machines that are rented or shared: Cloud TPU slices, SLURM, Kubernetes."""
