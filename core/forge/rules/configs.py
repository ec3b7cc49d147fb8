"""config.pbtxt as the rules see it: text to ``Config``, through Triton's own protobuf message. Pure."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol, cast

from google.protobuf.message import Message

from forge.repository import DATA_TYPES
from forge.rules.seen import Config, Step, Tensor

Blank = Callable[[], Message]
"""Gives an empty Triton ModelConfig (``forge.adapters.pbtxt.blank``)."""


class Unreadable(ValueError):  # noqa: N818 - says what the text is
    """A text that is no ModelConfig; the words are protobuf's."""


class _Word(Protocol):
    name: str


class _Enum(Protocol):
    values_by_number: Mapping[int, _Word]


class _Field(Protocol):
    message_type: "_Descriptor"
    enum_type: _Enum


class _Descriptor(Protocol):
    fields_by_name: Mapping[str, _Field]


class _Tensor(Protocol):
    name: str
    data_type: int
    dims: Iterable[int]
    optional: bool
    """Of inputs only."""


class _Step(Protocol):
    model_name: str
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


class _Scheduling(Protocol):
    step: Iterable[_Step]


class _Policy(Protocol):
    decoupled: bool


class _Group(Protocol):
    count: int


class _Value(Protocol):
    string_value: str


class _ModelConfig(Protocol):
    name: str
    backend: str
    platform: str
    max_batch_size: int
    model_transaction_policy: _Policy
    input: Iterable[_Tensor]
    output: Iterable[_Tensor]
    parameters: Mapping[str, _Value]
    instance_group: Iterable[_Group]
    ensemble_scheduling: _Scheduling
    default_model_filename: str


def read(text: str, blank: Blank, *, strict: bool = True) -> Config:
    """The config that ``text`` states; ``strict`` minds fields that the message does not have. Raises Unreadable."""
    from google.protobuf import text_format

    message = blank()
    try:
        config = cast("_ModelConfig", text_format.Parse(text, message, allow_unknown_field=not strict))
    except text_format.ParseError as error:
        raise Unreadable(str(error)) from error
    types = _types(message)
    steps = tuple(Step(s.model_name, dict(s.input_map), dict(s.output_map)) for s in config.ensemble_scheduling.step)
    return Config(
        name=config.name,
        backend=config.backend or config.platform,
        ensemble=config.platform == "ensemble" or bool(steps),
        max_batch_size=config.max_batch_size,
        decoupled=config.model_transaction_policy.decoupled,
        inputs=tuple(Tensor(t.name, types[t.data_type], tuple(t.dims), t.optional) for t in config.input),
        outputs=tuple(Tensor(t.name, types[t.data_type], tuple(t.dims)) for t in config.output),
        parameters={key: value.string_value for key, value in config.parameters.items()},
        instances=sum(max(group.count, 1) for group in config.instance_group) or 1,
        steps=steps,
        file=config.default_model_filename,
    )


def guess(text: str, blank: Blank) -> Config | None:
    """What can be read of a text that does not parse: fields that the message does not have are passed over, and a placeholder
    where a number or a word stands is taken for one. None where even that is no config.
    """
    with suppress(Unreadable):
        return replace(read(_PIECES.sub(lambda piece: _taken(piece, text), text), blank, strict=False), guessed=True)
    return None


def _taken(piece: re.Match[str], text: str) -> str:
    if piece["name"] is None:
        return piece[0]
    before = _FIELD.search(text, 0, piece.start())
    match before["field"] if before else "":
        case "decoupled":
            return "false"
        case "data_type":
            return DATA_TYPES.get(piece["name"], "TYPE_FP32")
        case "kind":
            return "KIND_AUTO"
        case "":
            return "-1"
        case _:
            return "1"


_PIECES = re.compile(r'"(?:\\.|[^"\\\n])*"|#[^\n]*|\$\{(?P<name>\w+)\}')
_FIELD = re.compile(r"(?P<field>\w+)\s*:\s*\Z")


def _types(message: Message) -> Mapping[int, str]:
    """Number -> name of Triton's data types (``TYPE_INT32``)."""
    descriptor = cast("_Descriptor", message.DESCRIPTOR)
    types = descriptor.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type
    return {number: value.name for number, value in types.values_by_number.items()}
