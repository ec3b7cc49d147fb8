"""Parameters of config.pbtxt: those that nobody reads, and values that are not what they should be."""

from collections.abc import Iterator
from functools import cache

from msgspec import Struct

from forge.check.model import Kind, Repository, truth
from forge.check.rules.rule import Found
from forge.errors import meant
from forge.files import texts

REFUSED = frozenset({"gpt_model_type"})
"""Words that the backend does not go on without: ``forge.check.rules.terms`` has them."""


class _Table(Struct, forbid_unknown_fields=True):
    """parameters.toml, which says where its rows are from."""

    everywhere: frozenset[str]
    numbers: frozenset[str]
    answers: frozenset[str]
    others: frozenset[str]
    words: dict[str, tuple[str, ...]]
    kinds: dict[Kind, frozenset[str]]


@cache
def known() -> _Table:
    """The parameters that somebody reads; those of ``Kind.ENGINE`` are all that are said of tensorrt_llm."""
    found = texts.shipped("forge.check.rules", "parameters.toml", _Table)
    found.kinds = {Kind.ENGINE: found.numbers | found.answers | found.others | found.words.keys(), **found.kinds}
    return found


def parameter_unknown(repository: Repository) -> Iterator[Found]:
    for kind, keys in known().kinds.items():
        for model, config in repository.of(kind):
            for key in config.parameters:
                if key in keys | known().everywhere or any(key in text for text in model.sources.values()):
                    continue  # a hand-written model reads what it likes
                hint = meant(key, keys, "take it away: no version's skeleton has it")
                yield Found(model.file, f"nobody reads the parameter {key}", hint, needle=f'"{key}"')


def tokenizer_type(repository: Repository) -> Iterator[Found]:
    for kind in (Kind.PREPROCESSING, Kind.POSTPROCESSING):
        for model, config in repository.of(kind):
            code = model.sources.get(model.code, "")
            if "tokenizer_type" in config.parameters and "tokenizer_type" not in code:
                value = config.parameters["tokenizer_type"]
                yield Found(model.file, f"tokenizer_type is {value!r}, and nobody reads it", needle='"tokenizer_type"')


def parameter_value(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENGINE):
        for key in config.parameters.keys() - REFUSED:
            if (value := config.stated(key)) and (wrong := _wrong(key, value)):
                yield Found(model.file, f"{key} is {value!r}: {wrong}", needle=f'"{key}"')


def _wrong(key: str, value: str) -> str:
    table = known()
    if key in table.answers and truth(value) is None:
        return "neither true nor false, so it counts as unset"
    if key in table.words and value not in table.words[key]:
        return f"it can be {', '.join(table.words[key])}"
    if key in table.numbers:
        try:
            float(value)
        except ValueError:
            return "no number, so it counts as unset"
    return ""
