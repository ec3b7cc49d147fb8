"""What the models that are loaded take, held from request to request: asking Triton for it costs as much as all else here."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from forge.client.grpc_aio import AsyncClient
from forge.client.types import ModelMetadata
from forge.errors import InferenceError
from forge.serve.openai.models import Offer

_FRESH = 5.0
"""Seconds after which it is read again, beside a request that does not wait for that: somebody may have loaded the model anew
without building it."""
_AFTER = 0.2
"""Seconds after such a request has come: its first word comes first."""


class Loaded:
    """``client`` asks, and knows of a failed request and of another server; ``steady`` is a clock for measuring."""

    def __init__(self, client: AsyncClient, steady: Callable[[], float]) -> None:
        self._client = client
        self._steady = steady
        self._read: dict[str, tuple[str, float]] = {}
        """Folder of a model -> what was built of it when it was read last, and when that was."""
        self._reading: dict[tuple[str, str], asyncio.Task[ModelMetadata]] = {}

    async def known(self, offer: Offer) -> ModelMetadata:
        """What the model takes; InferenceError where it is not ready. Read anew where it was built anew."""
        front = offer.target.model.front
        built, moment = self._read.get(front, ("", 0.0))
        if built != offer.key:
            return await asyncio.shield(self._anew(front, offer.key))
        if self._steady() - moment > _FRESH:
            self._anew(front, offer.key, _AFTER)
        return await self._client.metadata(front)

    def _anew(self, front: str, key: str, after: float = 0.0) -> asyncio.Task[ModelMetadata]:
        """One reading at a time, for all who wait for it."""
        if (front, key) not in self._reading:
            self._reading[front, key] = task = asyncio.create_task(self._learn(front, key, after))
            task.add_done_callback(lambda done: self._done(front, key, done))
        return self._reading[front, key]

    async def _learn(self, front: str, key: str, after: float) -> ModelMetadata:
        await asyncio.sleep(after)
        found = await self._client.metadata(front, anew=True)
        self._read[front] = key, self._steady()
        return found

    def _done(self, front: str, key: str, task: asyncio.Task[ModelMetadata]) -> None:
        self._reading.pop((front, key), None)
        with suppress(InferenceError, asyncio.CancelledError):  # who waits is told; the next request reads for itself
            task.result()
