"""The release whose command lines this stand-in speaks."""

__version__ = "0.21.0"
