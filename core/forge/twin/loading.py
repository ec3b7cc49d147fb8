"""Opens an engine folder of the twin: a Hugging Face checkpoint, and beside it the limits that it was built for."""

from pathlib import Path

from .architectures import knows
from .checkpoint import Weights, read_json
from .decoder import Decoder, NumpyDecoder
from .faults import CheckpointFault
from .narrow import NARROW, Narrow
from .others import TransformersDecoder
from .shape import read_shape


def load(folder: Path) -> Decoder:
    """The decoder of a checkpoint; CheckpointFault when there is none that the twin can run."""
    config = read_json(folder / "config.json")
    if knows(config):
        return NumpyDecoder(read_shape(config), Weights(folder), narrow=_narrow(folder))
    return TransformersDecoder(folder, config)


def _narrow(folder: Path) -> Narrow:
    """What the recipe has the matrices rounded to."""
    file = folder / "build_config.json"
    wanted = read_json(file).get("weights", "") if file.exists() else ""
    if wanted not in NARROW:
        raise CheckpointFault(f"{file}: weights is {wanted!r}; the twin rounds them to {' or '.join(filter(None, NARROW))}")
    return NARROW[str(wanted)]


def build_limit(folder: Path, name: str, most: int) -> int:
    """A limit that the recipe built the model for (build_config.json, as an engine would have it), never above ``most``."""
    file = folder / "build_config.json"
    value = read_json(file).get(name) if file.exists() else None
    return min(value, most) if isinstance(value, int) and value > 0 else most
