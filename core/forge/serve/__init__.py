"""Starts, watches, changes and stops a Triton, as a process or in a container."""
