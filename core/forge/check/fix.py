"""What ``forge check --fix`` changes, as data: configs written anew from their protobuf messages. Pure.

Only what has one right answer is fixed. A config that is written anew loses its comments; one that needs nothing is not.
"""

from collections.abc import Iterator

from msgspec import Struct

from forge import protobuf
from forge.check.model import Config, Kind, Model, Repository
from forge.check.rules import placeholders
from forge.check.rules.decoupled import pairs
from forge.errors import RepositoryError
from forge.protobuf import ModelConfig
from forge.repository import config as skeletons
from forge.schema.values import Role

ROLES = {
    Kind.ENSEMBLE: Role.ENSEMBLE,
    Kind.PREPROCESSING: Role.PREPROCESSING,
    Kind.ENGINE: Role.TENSORRT_LLM,
    Kind.POSTPROCESSING: Role.POSTPROCESSING,
    Kind.BLS: Role.BLS,
}


class Fixed(Struct, frozen=True):
    """A file to be written, or with ``text`` None a folder to be made; ``what`` says each change in a sentence."""

    path: str
    text: str | None
    what: tuple[str, ...]


def fixed(repository: Repository) -> tuple[Fixed, ...]:
    """Every change to ``repository`` that is safe."""
    streaming = {
        folder
        for bls, ours, engine, theirs in pairs(repository)
        if ours.decoupled != theirs.decoupled
        for folder in (bls.folder, engine.folder)
    }
    return tuple(each for model in repository.models for each in _model(repository, model, streaming))


def _model(repository: Repository, model: Model, streaming: set[str]) -> Iterator[Fixed]:
    if not model.versions:
        kind = repository.kinds[model.folder]
        if kind in (Kind.ENSEMBLE, Kind.ENGINE):
            yield Fixed(f"{model.folder}/1", None, (f"made the empty version folder {model.folder}/1",))
    if model.broken or model.config is None:
        text = _with_defaults(model)
        if text:
            names = ", ".join(name for name in placeholders.bare(model))
            yield Fixed(model.file, text, (f"filled {names} with the default, and dropped what nobody set",))
        return
    message = protobuf.parse(model.text)
    said = tuple(_changes(repository, model, model.config, message, decoupled=model.folder in streaming))
    if said:
        yield Fixed(model.file, protobuf.write(message), said)


def _with_defaults(model: Model) -> str:
    """A config whose open placeholders all have a known default; empty where one has none."""
    left = placeholders.bare(model)
    if not left or not set(left) <= set(skeletons.DEFAULTS):
        return ""
    role = next((role for role in Role if model.folder == role or model.folder.endswith(f"-{role}")), None)
    try:
        return skeletons.fill(model.text, {}, role)
    except RepositoryError:
        return ""


def _changes(repository: Repository, model: Model, config: Config, message: ModelConfig, *, decoupled: bool) -> Iterator[str]:
    """Make each change in ``message`` and say it."""
    if config.name and config.name != model.folder:
        message.name = model.folder
        yield f"name is {model.folder!r}, as the folder"
    if decoupled and not config.decoupled:
        message.model_transaction_policy.decoupled = True
        yield "decoupled is true, as in the other model of the pair"
    if repository.kinds[model.folder] is Kind.ENGINE and config.instances > 1 and not config.stated("gpu_device_ids"):
        message.instance_group[0].count = 1
        del message.instance_group[1:]
        yield "one instance of the engine"
    yield from _parameters(repository, model, config, message)


def _parameters(repository: Repository, model: Model, config: Config, message: ModelConfig) -> Iterator[str]:
    absent = placeholders.missing(repository, model, config)
    wanted = {*placeholders.GUIDED, "multimodal_model_path"} if repository.kinds[model.folder] in _STRICT else set[str]()
    dropped = [key for key in placeholders.idle(repository, model, config) if key not in wanted]
    emptied = [key for key in placeholders.idle(repository, model, config) if key in wanted]
    for key in (*absent, *emptied):
        message.parameters[key].string_value = ""
    for key in dropped:
        del message.parameters[key]
    code = model.sources.get(model.code, "")
    if "tokenizer_type" in config.parameters and "tokenizer_type" not in code and "tokenizer_type" not in dropped:
        del message.parameters["tokenizer_type"]
        yield "dropped tokenizer_type, which nobody reads"
    if dropped:
        yield f"dropped {', '.join(dropped)}, which nobody set"
    if absent or emptied:
        yield f"{', '.join((*absent, *emptied))} {'are' if len(absent) + len(emptied) > 1 else 'is'} there and empty"


_STRICT = (Kind.ENGINE, Kind.PREPROCESSING)
