"""Finished artifacts by key: made once, whole, read-only; who uses them, and what can go."""
