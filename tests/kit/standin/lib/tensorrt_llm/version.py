"""The release whose command lines this stand-in speaks, or another whose engines and backend it is to stand for."""

import os

__version__ = os.environ.get("STANDIN_RELEASE", "0.21.0")
