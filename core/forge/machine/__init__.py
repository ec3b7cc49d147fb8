"""This machine: processes, private Python environments, GPUs, Docker."""
