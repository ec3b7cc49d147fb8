"""Speak to served models from Python, with or without asyncio."""

from forge.client.answer import Answer, Perf, Piece, Reply
from forge.client.client import AsyncClient, Client
from forge.client.types import Acceptance, Chunk, ModelMetadata, Request, TensorMetadata
from forge.errors import InferenceError

__all__ = [
    "Acceptance",
    "Answer",
    "AsyncClient",
    "Chunk",
    "Client",
    "InferenceError",
    "ModelMetadata",
    "Perf",
    "Piece",
    "Reply",
    "Request",
    "TensorMetadata",
]
