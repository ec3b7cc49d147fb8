"""The Python API: `Workshop`, and what stands behind each port."""
