"""What a client of OpenAI's API asks for: read, checked, and put as a request to a served model. Pure.

A field that would change the answer and that these models cannot obey is refused in words, and so is one that nobody knows:
what is ignored in silence is found out late. Fields that only label a request are ignored.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from forge.client.chat_template import Part, Turn
from forge.client.guide import Guide
from forge.client.sampling import over, seeded
from forge.client.types import Request
from forge.serve.openai.api_errors import Fault, refused, require_shallow
from forge.serve.openai.tools import Called, Choice, Tool, Tooling, repeated, tooling

_PARAM = re.compile(r"`\$\.(\w+)")
_FIELD = re.compile(r"(?:missing required|unknown) field `(\w+)`")
_DATA = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_SEEDS = 2**63
"""Seeds of NVIDIA's models: 64 bits, in some versions signed. The API's may be negative."""

Count = Annotated[int, Meta(ge=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
_MOST_BIASED = 1024
"""Tokens of one request; vLLM takes no more."""
Stop = Annotated[str, Meta(min_length=1)]


class _StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """Not OpenAI's: other servers of this API take it, and NVIDIA's AIPerf asks for it."""
    include_obfuscation: object = None
    """Of padding, which carries nothing: there is none."""


class _Schema(Struct):
    schema: dict[str, object] | None = None
    name: str = ""


class _Format(Struct):
    type: str = "text"
    json_schema: _Schema | None = None

    @property
    def guide(self) -> Guide | None:
        """Fault for a form that is not offered, and for a schema that is not there."""
        match self.type:
            case "text":
                return None
            case "json_object":
                return Guide.any_json()
            case "json_schema" if self.json_schema and self.json_schema.schema is not None:
                require_shallow(self.json_schema.schema, "response_format", "response_format")
                return Guide.json_schema(self.json_schema.schema)
            case "json_schema":
                raise refused("response_format", "json_schema: it needs json_schema.schema, an object")
            case _:
                raise refused("response_format", f"text, json_object and json_schema are offered, not {self.type}")


class _Image(Struct):
    url: str
    detail: object = None

    def content(self, where: str) -> bytes:
        """The file that stands in the address itself; Fault for any other address, which nothing here fetches."""
        found = _DATA.match(self.url)
        if found is None:
            said = "an image stands in the request: data:image/png;base64,... (nothing is fetched from other addresses)"
            raise Fault(400, f"{where}: {said}", param="messages", code="invalid_value")
        try:
            return base64.b64decode(self.url[found.end() :], validate=True)
        except ValueError as error:
            raise Fault(400, f"{where}: the image is no base64: {error}", param="messages", code="invalid_value") from error


class _Part(Struct):
    type: str
    text: str | None = None
    image_url: _Image | None = None


class _Message(Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[Called] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    function_call: object = None


class Ask(Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields that chat and text completions share."""

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: Stop | list[Stop] | None = None
    seed: int | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    logit_bias: Annotated[dict[Annotated[int, Meta(ge=0, le=2**31 - 1)], Bias], Meta(max_length=_MOST_BIASED)] | None = None
    """By token id."""

    # Not OpenAI's: what the served models take beside it, under the names that other servers of this API use.
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    beam_width: Annotated[int, Meta(ge=1)] | None = None
    """Beam search, so many beams wide; ``n`` are then its best beams."""
    ignore_eos: bool | None = None

    # These label a request and do not change its answer.
    user: object = None
    metadata: object = None
    store: object = None
    service_tier: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None
    prompt_cache_retention: object = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts at which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_usage_throughout(self) -> bool:
        """Whether each event of a stream has the counts so far."""
        return self.wants_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def limit(self) -> int | None:
        """At most so many new tokens."""
        return self.max_tokens

    @property
    def log_probs(self) -> bool:
        """Whether the tokens' log-probabilities are wanted."""
        return False

    @property
    def tops(self) -> int:
        """So many of the likeliest tokens at each place are wanted too."""
        return 0

    @property
    def guide(self) -> Guide | None:
        """What answers are held to; Fault for a schema that is none."""
        return None

    @property
    def images(self) -> tuple[bytes, ...]:
        """The files of the images that the model is shown, in order; Fault for one that is none."""
        return ()

    def check(self) -> None:
        """Fault for what cannot be given."""
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "it is only for streams")

    def applied(self, usual: Request, copy: int) -> Request:
        """``usual``, what the recipe asks for, with what the client asks for, for the ``copy``-th answer to one prompt."""
        limit = self.limit or usual.max_tokens
        said = {
            "max_tokens": limit,
            "temperature": self.temperature,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "guide": self.guide,
            "seed": self.seed,
            "n": self.n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "beam_width": self.beam_width,
            "logit_bias": self.logit_bias or None,
            "min_tokens": limit if self.ignore_eos else self.min_tokens,
            "stop": self.stops or None,
            "return_log_probs": self.log_probs,
            "top_log_probs": self.tops or None,
            "return_token_counts": True,
        }
        request = seeded(over(usual, said))
        return replace(
            request, n=None, images=self.images, seed=None if request.seed is None else (request.seed + copy) % _SEEDS
        )


class ChatAsk(Ask, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: _Format | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool | None = None
    functions: object = None
    function_call: object = None
    modalities: list[str] | None = None
    audio: object = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def log_probs(self) -> bool:
        return bool(self.logprobs)

    @property
    def tops(self) -> int:
        return self.top_logprobs or 0

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "it needs logprobs: true")
        if self.response_format and self.response_format.guide and self.tooling:
            raise refused("response_format", "an answer that is held to a form calls no tools: tool_choice none, or no tools")
        _ = self.guide
        for name, value in (("functions", self.functions), ("function_call", self.function_call)):
            if value and value != "none":
                raise refused(name, "it was replaced by tools and tool_choice, which are offered")
        if self.audio or (self.modalities or ["text"]) != ["text"]:
            raise refused("modalities", "text is all that is offered")

    @property
    def guide(self) -> Guide | None:
        return self.tooling.guide if self.tooling else self.response_format.guide if self.response_format else None

    @property
    def tooling(self) -> Tooling | None:
        """The tools that may be called; Fault for such that are none."""
        return tooling(self.tools, self.tool_choice, self.parallel_tool_calls)

    @property
    def recalls(self) -> bool:
        """Whether the conversation has calls of tools."""
        return any(message.tool_calls or message.role == "tool" for message in self.messages)

    @property
    def conversation(self) -> tuple[Turn, ...]:
        """(role, text or parts) of each message, or all that a template reads of a call and its outcome; Fault for what is
        neither text nor image.

        ``developer`` is the newer word for ``system``.
        """
        calls = (call for message in self.messages for call in message.tool_calls or () if call.function)
        names = {call.id: call.function.name for call in calls if call.function}
        return tuple(_message(place, message, names) for place, message in enumerate(self.messages))

    @property
    def images(self) -> tuple[bytes, ...]:
        return tuple(
            part.image_url.content(f"messages.{place}")
            for place, message in enumerate(self.messages)
            for part in (message.content if isinstance(message.content, list) else ())
            if part.type == "image_url" and part.image_url
        )


class TextAsk(Ask, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Count | None = None

    @property
    def log_probs(self) -> bool:
        return self.logprobs is not None

    @property
    def tops(self) -> int:
        return self.logprobs or 0

    def check(self) -> None:
        super().check()
        if self.echo:
            raise refused("echo", "the prompt is not repeated")
        if self.suffix:
            raise refused("suffix", "these models do not fill in")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise refused("best_of", "every answer is given: it has to be the same as n")

    @property
    def prompts(self) -> tuple[str, ...]:
        """One or several; Fault for token ids."""
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        texts = tuple(prompt for prompt in given if isinstance(prompt, str))
        if len(texts) < len(given):
            raise refused("prompt", "token ids are not taken: the models that are asked take text")
        return texts


_PARTS = (("text", False, True), ("image_url", True, False))
"""A part's type, whether it has no text, and whether it has no image."""
AnyAsk = TypeVar("AnyAsk", bound=Ask)


def read(body: bytes, kind: type[AnyAsk]) -> AnyAsk:
    """The ask in a request's body; Fault, with the field to blame, for one that cannot be obeyed."""
    try:
        ask = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        said = str(error)
        found = _FIELD.search(said) or _PARAM.search(said)
        raise Fault(400, said, param=found[1] if found else None, code="invalid_value") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Fault(400, f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise Fault(400, "the body's values are nested too deep") from error
    ask.check()
    return ask


def _message(place: int, message: _Message, names: Mapping[str, str]) -> Turn:
    """``names`` are those of the tools that were called, by the calls' ids: some templates want to be told."""
    where = f"messages.{place}"
    if message.role not in {"system", "developer", "user", "assistant", "tool"}:
        raise Fault(400, f"{where}: role {message.role!r} is not offered", param="messages", code="unsupported_value")
    if message.function_call:
        said = f"{where}: function_call was replaced by tool_calls"
        raise Fault(400, said, param="messages", code="unsupported_value")
    role = "system" if message.role == "developer" else message.role
    content = message.content if isinstance(message.content, str) else _joined(where, message.content or ())
    if role == "tool":
        if not message.tool_call_id:
            raise Fault(400, f"{where}: a message of role tool says its tool_call_id", param="messages", code="invalid_value")
        name = message.name or names.get(message.tool_call_id)
        named = {"name": name} if name else {}
        return {"role": role, "content": content, "tool_call_id": message.tool_call_id, **named}
    if role == "assistant" and message.tool_calls:
        return {"role": role, "content": content, "tool_calls": repeated(where, message.tool_calls)}
    return role, content


def _joined(where: str, parts: Sequence[_Part]) -> str | tuple[Part, ...]:
    """One text of texts alone; where images are among them their places are told to the chat template."""
    for part in parts:
        if (part.type, part.text is None, part.image_url is None) not in _PARTS:
            said = f"parts are text and image_url, not {part.type}"
            if part.type in ("text", "image_url"):
                said = f"a part of type {part.type} has {part.type} alone"
            raise Fault(400, f"{where}: {said}", param="messages", code="unsupported_value")
    if all(part.type == "text" for part in parts):
        return "\n".join(part.text or "" for part in parts)
    return tuple({"type": "image"} if part.image_url else {"type": "text", "text": part.text or ""} for part in parts)
