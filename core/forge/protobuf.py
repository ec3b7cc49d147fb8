"""config.pbtxt and Triton's ModelConfig message: a text read as one, and one written as text.

The message comes out of tritonclient's generated module alone: ``import tritonclient.grpc`` costs 181 ms because it brings
grpc along; its model_config_pb2 loaded by path costs 37.
"""

import sys
from collections.abc import Iterable, Mapping, MutableMapping, MutableSequence
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Protocol, cast

from google.protobuf.message import Message

from forge.errors import HostError

MODULE = "tritonclient.grpc.model_config_pb2"


class Unreadable(ValueError):  # noqa: N818 - says what the text is
    """A text that is no ModelConfig; the words are protobuf's."""


class Tensor(Protocol):
    """ModelInput and ModelOutput."""

    name: str
    data_type: int
    dims: Iterable[int]
    optional: bool
    """Of inputs only."""


class Step(Protocol):
    """ModelEnsembling.Step: a model, and which of the ensemble's tensors are its own ones."""

    model_name: str
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


class Scheduling(Protocol):
    """ModelEnsembling."""

    step: Iterable[Step]


class Policy(Protocol):
    """ModelTransactionPolicy."""

    decoupled: bool


KIND_GPU = 1
"""ModelInstanceGroup.Kind."""


class Group(Protocol):
    """ModelInstanceGroup; ``kind`` is ``KIND_GPU`` or another."""

    count: int
    kind: int


class Parameter(Protocol):
    """ModelParameter."""

    string_value: str


class QueuePolicy(Protocol):
    max_queue_size: int


class Batching(Protocol):
    preferred_batch_size: MutableSequence[int]
    default_queue_policy: QueuePolicy


class ModelConfig(Protocol):
    """The fields of Triton's ModelConfig that forge touches, as model_config.proto names them."""

    name: str
    backend: str
    platform: str
    max_batch_size: int
    model_transaction_policy: Policy
    input: Iterable[Tensor]
    output: Iterable[Tensor]
    parameters: MutableMapping[str, Parameter]
    instance_group: MutableSequence[Group]
    ensemble_scheduling: Scheduling
    default_model_filename: str
    dynamic_batching: Batching

    def HasField(self, name: str) -> bool: ...  # noqa: N802 (protobuf's name)


class _Word(Protocol):
    name: str


class _Enum(Protocol):
    values_by_number: Mapping[int, _Word]


class _Wrapper(Protocol):
    DESCRIPTOR: _Enum


class _Generated(Protocol):
    DataType: _Wrapper

    def ModelConfig(self) -> Message: ...  # noqa: N802 (the generated class's name)


def parse(text: str, *, strict: bool = True) -> ModelConfig:
    """The message that ``text`` states; ``strict`` minds fields that it does not have. Raises Unreadable, and HostError where
    tritonclient is not installed whole.
    """
    message = _module().ModelConfig()
    message.ParseFromString(_parsed(text, strict))  # a copy: whoever gets it may change it
    return cast("ModelConfig", message)


@lru_cache(256)
def _parsed(text: str, strict: bool) -> bytes:
    """The message as bytes. Protobuf reads its text format in Python, 1 ms for a config, and a build reads each twice."""
    from google.protobuf import text_format

    try:
        message = text_format.Parse(text, _module().ModelConfig(), allow_unknown_field=not strict)
    except (text_format.ParseError, ValueError, OverflowError, RecursionError) as error:  # a number that no field can hold
        raise Unreadable(str(error)) from error
    return message.SerializeToString()


def write(config: ModelConfig) -> str:
    """The message in protobuf's text format."""
    from google.protobuf import text_format

    return text_format.MessageToString(cast("Message", config), as_utf8=True)


def data_types() -> Mapping[int, str]:
    """Number -> name of Triton's data types (``TYPE_INT32``)."""
    return {number: word.name for number, word in _module().DataType.DESCRIPTOR.values_by_number.items()}


def _module() -> _Generated:
    # Kept under a name of its own: under tritonclient's it would hide that the package itself was never imported.
    name = f"forge:{MODULE}"
    for known in (MODULE, name):
        if known in sys.modules:
            return cast("_Generated", sys.modules[known])
    package = util.find_spec("tritonclient")
    places = [Path(place, "grpc", "model_config_pb2.py") for place in (package and package.submodule_search_locations) or ()]
    file = next((place for place in places if place.is_file()), None)
    spec = util.spec_from_file_location(name, file) if file else None
    if spec is None or spec.loader is None:
        raise HostError("tritonclient[grpc] is not installed", hint="install forge again: `pip install triton-forge`")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return cast("_Generated", module)
