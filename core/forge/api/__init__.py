"""The Python API: `Forge`, and what stands behind each port."""
