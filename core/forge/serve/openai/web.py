"""OpenAI's API over HTTP: routes, bodies, server-sent events and leaving clients. What is said is the service's affair."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import cache
from http import HTTPStatus
from typing import cast

import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forge.files import texts
from forge.serve.openai.access import Access
from forge.serve.openai.api_errors import Fault, too_large
from forge.serve.openai.assets import Assets
from forge.serve.openai.metrics import TYPE
from forge.serve.openai.patience import Patience, protocol
from forge.serve.openai.service import Answered, Service

_DROPPED = 64 * 2**20
"""Bytes of a body that is too large which are read and dropped, so that its sender comes to read the answer."""
_DROPPING = 2.0
"""Seconds for that."""
_OFFERED = "here are /v1/chat/completions, /v1/completions and /v1/models"
_RETRY = "5"
"""Seconds after which what is away may be back."""
_LEAVING = 5
"""Seconds for answers under way when the server is told to end."""
_PATIENCE = Patience()


class Door(Struct, frozen=True):
    """What stands before the service: who is let in, and what the page says of the models."""

    access: Access
    cards: Callable[[], Awaitable[bytes]]


class _Asking(Response):
    """The answer to a POST: it watches its client while the model works, and ends the work when that one leaves."""

    def __init__(self, ask: Callable[[], Awaitable[Answered]]) -> None:
        super().__init__()
        self._ask = ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._work(scope, receive, send))
        gone = asyncio.create_task(_left(receive))
        gone.add_done_callback(lambda _: work.cancel())
        try:
            await work
        except asyncio.CancelledError:
            if not gone.done():
                raise
        finally:
            gone.cancel()

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = await self._ask()
        if answered.events is None:
            await _json(answered.document)(scope, receive, send)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        async with aclosing(answered.events) as events:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Gate:
    """Lets in whom ``access`` lets in."""

    def __init__(self, app: ASGIApp, access: Access, service: Service) -> None:
        self._app = app
        self._access = access
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._access.require(scope["path"], Headers(scope=scope))
            except Fault as fault:
                response = _counted(fault, self._service)
                if response.status_code == HTTPStatus.UNAUTHORIZED:
                    response.headers["www-authenticate"] = "Bearer"
                if response.status_code == HTTPStatus.BAD_REQUEST:  # nothing that comes behind it is a request
                    response.headers["connection"] = "close"
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _page(door: Door | None) -> list[Route]:
    """Its routes, where there is one."""
    if door is None or not door.access.page:
        return []
    assets, known = Assets(), door

    async def page(request: Request) -> Response:
        found = assets.response(str(request.path_params.get("name", "index.html")))
        if found is None:
            raise HTTPException(404)
        return found

    async def cards(_: Request) -> Response:
        return _json(await known.cards())

    return [Route("/", page), Route("/ui/models", cards), Route("/ui/{name}", page)]


def _signs(service: Service) -> list[Route]:
    """By which whoever watches over it sees how it is."""

    async def health(_: Request) -> Response:
        return _json(await service.health())

    async def live(_: Request) -> Response:
        return Response()

    async def metrics(_: Request) -> Response:
        return Response(service.metrics(), headers={"content-type": TYPE})

    return [Route("/health", health), Route("/live", live), Route("/metrics", metrics)]


def application(service: Service, patience: Patience = _PATIENCE, door: Door | None = None) -> Starlette:
    """The routes; every error has the API's form. Without a ``door`` whoever comes may ask, and there is no page."""

    async def models(_: Request) -> Response:
        return _json(await service.models())

    async def model(request: Request) -> Response:
        return _json(await service.model(str(request.path_params["name"])))

    async def chat(request: Request) -> Response:
        body = await _body(request, service.largest, patience)
        return _Asking(lambda: service.chat(body))

    async def complete(request: Request) -> Response:
        body = await _body(request, service.largest, patience)
        return _Asking(lambda: service.complete(body))

    async def faulty(_: Request, error: Exception) -> Response:
        return _counted(cast("Fault", error), service)

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        said = _words(error) if status != HTTPStatus.NOT_FOUND else _instead(request.url.path)
        return _failed(Fault(status, f"{request.method} {request.url.path}: {said}"))

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            *_signs(service),
            *_page(door),
        ],
        middleware=[Middleware(_Gate, access=door.access, service=service)] if door else [],
        exception_handlers={Fault: faulty, HTTPException: refused, Exception: refused},
    )


def server(application: Starlette, host: str, port: int, patience: Patience = _PATIENCE) -> uvicorn.Server:
    """What serves ``application``; it ends when its ``should_exit`` is set."""
    return uvicorn.Server(
        uvicorn.Config(
            application,
            host=host,
            port=port,
            ws="none",
            http=protocol(patience),
            lifespan="off",
            log_level="error",  # each odd request would be a line of it
            access_log=False,  # it would be put together and thrown away
            proxy_headers=False,  # nobody asks who the client is
            timeout_graceful_shutdown=_LEAVING,
        )
    )


async def serve(application: Starlette, host: str, port: int, *, kept: bool) -> None:
    """Listen until SIGINT or SIGTERM, or with ``kept`` until standard input ends: whoever holds it is gone then."""
    made = server(application, host, port)
    if kept:
        os.set_blocking(sys.stdin.fileno(), False)
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), lambda: setattr(made, "should_exit", True))
    await made.serve()


async def _left(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def _body(request: Request, largest: int, patience: Patience) -> bytes:
    """The whole body; a fault where it is larger than ``largest`` bytes, compressed, or does not come in time."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Fault(415, "the body is compressed (Content-Encoding): send it as it is", code="unsupported_value")
    stated = request.headers.get("content-length", "")
    held, seen = bytearray(), int(stated) if stated.isdecimal() else 0
    if seen > largest and "expect" in request.headers:  # it waits to be asked for the body
        raise too_large(largest)
    parts = request.stream()
    try:
        async with asyncio.timeout(patience.body), aclosing(parts):
            async for part in parts:
                held += part
                if max(len(held), seen) > largest:
                    await _drop(parts, max(len(held), seen))
                    raise too_large(largest)
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not come within {patience.body:g} s", {"connection": "close"}) from error
    except ClientDisconnect:
        raise HTTPException(400, "the client left before its request was whole") from None
    return bytes(held)


async def _drop(parts: AsyncGenerator[bytes], stated: int) -> None:
    """Read what a client is still sending, as far as that is not too much: it does not look for an answer before."""
    if stated > _DROPPED:
        return
    seen = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_DROPPING):
            async for part in parts:
                seen += len(part)
                if seen > _DROPPED:
                    return


def _json(document: bytes, status: int = 200) -> Response:
    return Response(document, status, media_type="application/json")


def _counted(fault: Fault, service: Service) -> Response:
    service.refused(fault.status, fault.code)
    return _failed(fault)


def _failed(fault: Fault) -> Response:
    response = _json(fault.body, fault.status)
    if fault.status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["retry-after"] = _RETRY
    return response


@cache
def _elsewhere() -> dict[str, str]:
    return texts.shipped("forge.serve.openai", "elsewhere.toml", dict[str, str])


def _instead(path: str) -> str:
    """What to say of a path that is not there."""
    found = next((said for begins, said in _elsewhere().items() if path == begins or path.startswith(f"{begins}/")), "")
    return f"{found or 'Not Found'} ({_OFFERED})"


def _words(error: Exception) -> str:
    return error.detail if isinstance(error, HTTPException) else "an error of this server; its log says more"
