"""Speak to served models from Python, with or without asyncio.

The names are resolved when they are asked for, as those of ``forge`` are: who wants one file of this package pays for no other.
"""

import importlib

_PLACES = {
    "Acceptance": "forge.client.types",
    "Chunk": "forge.client.types",
    "ModelMetadata": "forge.client.types",
    "Guide": "forge.client.guide",
    "Request": "forge.client.types",
    "TensorMetadata": "forge.client.types",
    "Answer": "forge.client.answer",
    "Perf": "forge.client.answer",
    "Piece": "forge.client.answer",
    "Reply": "forge.client.answer",
    "AsyncClient": "forge.client.grpc_aio",
    "Client": "forge.client.grpc",
    "InferenceError": "forge.errors",
}

__all__ = list(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'forge.client' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
