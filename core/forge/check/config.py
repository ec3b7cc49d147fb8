"""config.pbtxt as the rules see it: text to ``Config``, through Triton's own protobuf message. Pure."""

import re
from contextlib import suppress

from msgspec.structs import replace

from forge import protobuf
from forge.check.model import Config, Step, Tensor
from forge.repository.config import DATA_TYPES


def read(text: str, *, strict: bool = True) -> Config:
    """The config that ``text`` states; ``strict`` minds fields that the message does not have. Raises protobuf.Unreadable."""
    config = protobuf.parse(text, strict=strict)
    types = protobuf.data_types()
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
        gpu=any(group.kind == protobuf.KIND_GPU for group in config.instance_group),
        steps=steps,
        file=config.default_model_filename,
        queued=config.HasField("dynamic_batching") or config.HasField("sequence_batching"),
    )


def guess(text: str) -> Config | None:
    """What can be read of a text that does not parse: fields that the message does not have are passed over, and a placeholder
    where a number or a word stands is taken for one. None where even that is no config.
    """
    with suppress(protobuf.Unreadable):
        return replace(read(_PIECES.sub(lambda piece: _taken(piece, text), text), strict=False), guessed=True)
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
