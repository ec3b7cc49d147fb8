"""Speak to served models from Python, with or without asyncio."""

from forge.client.answer import Answer, Perf, Piece, Reply
from forge.client.grpc import Client
from forge.client.grpc_aio import AsyncClient
from forge.client.guide import Guide
from forge.client.types import Acceptance, Chunk, ModelMetadata, Request, TensorMetadata
from forge.errors import InferenceError

__all__ = [
    "Acceptance",
    "Answer",
    "AsyncClient",
    "Chunk",
    "Client",
    "Guide",
    "InferenceError",
    "ModelMetadata",
    "Perf",
    "Piece",
    "Reply",
    "Request",
    "TensorMetadata",
]
