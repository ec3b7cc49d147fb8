"""What goes wrong, in the form that OpenAI's API gives it: an HTTP status and an ``error`` object. Pure."""

import re
from collections.abc import Iterable
from typing import cast

import msgspec
from msgspec import Struct

from forge.errors import InferenceError, Trouble

_CALLERS = re.compile(
    r"exceed|too long|length|invalid|not support|must be|should be|ha[sv]e? to|at most|left out|empty|UTF-8|\bmax_\w+|grammar|"
    r"schema|regex|vocab",
    re.IGNORECASE,
)
"""How Triton, TensorRT-LLM and the twin speak of a request that cannot be answered. They give no code that would tell it from
a failure of their own."""


class _Error(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _Body(Struct):
    error: _Error


class Fault(Exception):  # noqa: N818  # the API's word for it is "error"; here it is an answer
    """A request that is answered with an error. ``param`` names the field that is to blame."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self._message = message
        self._param = param
        self.code = code

    @property
    def body(self) -> bytes:
        """The JSON document."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return msgspec.json.encode(_Body(_Error(self._message, kind, self._param, self.code)))


def refused(param: str, why: str) -> Fault:
    return Fault(400, f"{param}: {why}", param=param, code="unsupported_value")


def beyond(param: str, what: str, most: int, key: str) -> Fault:
    """A request that asks for more than ``most``, which is what the recipe's ``key`` of [limits] allows."""
    said = f"{param}: {what}; at most {most} are taken (limits.{key} of the model's recipe)"
    return Fault(400, said, param=param, code="limit_exceeded")


_DEEPEST = 100
"""Objects and lists within one another: far from where encoders of JSON give up, and further than any schema goes."""


def require_shallow(value: object, where: str, param: str) -> None:
    """Fault for a value that is nested too deep to be written again."""
    level = [value]
    for _ in range(_DEEPEST + 1):
        level = [inner for each in level for inner in _within(each)]
        if not level:
            return
    raise Fault(400, f"{where}: it is nested more than {_DEEPEST} deep", param=param, code="invalid_value")


def _within(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast("dict[object, object]", value).values()
    return cast("list[object]", value) if isinstance(value, list) else ()


def too_large(most: int) -> Fault:
    """A body of more than ``most`` bytes."""
    said = f"the body has more than {most} bytes, the most that is taken (limits.max_body_bytes of the model's recipe)"
    return Fault(413, said, code="request_too_large")


def busy(model: str, most: int) -> Fault:
    """As many answers as may be are under way."""
    said = f"The model '{model}' is busy: {most} answers are under way (limits.max_requests of its recipe); ask again later"
    return Fault(429, said, code="rate_limit_exceeded")


def waiting(model: str) -> Fault:
    """Too many conversations wait for a chat template that is slow."""
    said = f"The chat template of '{model}' is busy with other conversations; ask again later"
    return Fault(503, said, code="server_busy")


def unknown_model(name: str, offered: tuple[str, ...]) -> Fault:
    """No such model is offered."""
    names = ", ".join(offered) or "none"
    return Fault(404, f"The model '{name}' does not exist; offered: {names}", param="model", code="model_not_found")


_SOON = "ask again in some seconds"
_AGAIN = f"where Triton died, forge starts it again: {_SOON}"


def coming(model: str) -> Fault:
    """Triton is there again, and has not loaded this model yet."""
    return Fault(
        503, f"The model '{model}' is not ready yet: Triton is being started again; {_SOON}", code="server_unavailable"
    )


def translated(error: InferenceError, model: str = "") -> Fault:
    """What the way to the served model, or the model itself, says."""
    said = f"{error.what} ({error.hint})" if error.hint else error.what
    match error.trouble:
        case Trouble.AWAY:
            return Fault(503, f"{error.what}; {_AGAIN}", code="server_unavailable")
        case Trouble.UNKNOWN:
            return Fault(404, f"The model '{model}' is not ready", param="model", code="model_not_found")
        case Trouble.LATE:
            return Fault(504, said, code="timeout")
        case Trouble.DEAD:
            return Fault(503, said, code="model_dead")
        case Trouble.BUSY:
            return Fault(429, said, code="rate_limit_exceeded")
        case Trouble.OTHER:
            return Fault(400 if _CALLERS.search(error.what) else 500, said)
