"""forge's filling beside NVIDIA's fill_template.py: the same message where that script acts, words where it is silent.

The script is written again here from what it does (tools/fill_template.py, TensorRT-LLM 0.14 to 1.2): pairs ``key:value``
joined by commas, a backslash before what is not to split; a key has to occur somewhere in the file; then string.Template's
safe_substitute over the text, with 0 for two sizes that nobody sets.
"""

import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from string import Template
from typing import Protocol, cast

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings, strategies as st

import originals
from forge import protobuf
from forge.errors import RepositoryError
from forge.repository import config as repository
from forge.schema.values import Role, TextFile

FILES = [file for file in originals.configs() if "${" in file.read_text(encoding="utf-8")]
PLAIN = "".join(chr(code) for code in range(33, 127) if chr(code) not in "\"'\\$#")
"""What both take into a string as it stands; a quote or a backslash breaks the file under NVIDIA's script."""


class Parameter(Protocol):
    """A parameter of Triton's ModelConfig."""

    string_value: str


def fill_template(text: str, substitutions: str) -> str:
    """The text after the script has run; AssertionError where it refuses."""
    known = {"max_queue_size": "0", "max_queue_delay_microseconds": "0"}
    for pair in _split(substitutions, ","):
        key, value = _split(pair, ":")
        known[key] = value
        assert key in text, key
    return Template(text).safe_substitute(known)


def _split(text: str, at: str) -> list[str]:
    """As the script splits: what follows a backslash is taken as it is, and the backslash is gone."""
    pieces, escaped = [""], False
    for char in text:
        if escaped or char not in (at, "\\"):
            pieces[-1] += char
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            pieces.append("")
    return pieces


def said(values: Mapping[str, str]) -> str:
    """Values as a person has to write them for the script: it splits twice, and each time takes a backslash away."""

    def spelled(word: str) -> str:
        once = re.sub(r"([\\:])", r"\\\1", word)
        return re.sub(r"([\\,])", r"\\\1", once)

    return ",".join(f"{key}:{spelled(value)}" for key, value in values.items())


def parsed(text: str) -> Message:
    return cast("Message", protobuf.parse(text))


def without_unfilled(config: Message) -> Message:
    """What Triton's backends make of it: a parameter that is still a placeholder is none."""
    held = cast("MutableMapping[str, Parameter]", config.parameters)  # type: ignore[attr-defined]
    for key in [key for key, value in held.items() if "${" in value.string_value]:
        del held[key]
    return config


def bare(skeleton: str) -> list[str]:
    """Placeholders outside of quotes, without which the file is none."""
    code = re.sub(r"#[^\n]*", "", skeleton)
    return list(dict.fromkeys(re.findall(r"\$\{(\w+)\}", re.sub(r'"[^"]*"', '""', code))))


def suited(name: str) -> str:
    """A value that can stand where this placeholder is not in quotes."""
    if "data" in name and "type" in name:
        return "TYPE_FP16"
    return "true" if name == "decoupled_mode" else "3"


@pytest.mark.skipif(not FILES, reason=originals.MISSING)
@pytest.mark.parametrize("file", FILES, ids=originals.title)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_what_nvidias_script_acts_on_gives_the_same_message(file: Path, data: st.DataObject) -> None:
    skeleton = file.read_text(encoding="utf-8")
    names = repository.placeholders(skeleton)
    needed = [name for name in names if name in repository.NEEDED or name in bare(skeleton)]
    others = [name for name in names if name not in needed]
    chosen = data.draw(st.sets(st.sampled_from(others))) if others else set[str]()
    words = st.text(alphabet=PLAIN, min_size=1, max_size=12)
    values = {name: suited(name) if name in bare(skeleton) else data.draw(words) for name in (*needed, *sorted(chosen))}
    theirs = fill_template(skeleton, said(values))
    ours = repository.fill(skeleton, values)
    assert parsed(ours) == without_unfilled(parsed(theirs))


SKELETON = """
name: "tiny"
max_batch_size: ${triton_max_batch_size}
parameters { key: "gpt_model_path" value { string_value: "${engine_dir}" } }
parameters { key: "tokenizer_dir" value { string_value: "${tokenizer_dir}" } }
"""
VALUES = {"triton_max_batch_size": "4", "engine_dir": "/e", "tokenizer_dir": "/t"}


def test_a_key_for_only_part_of_the_file_is_named() -> None:
    assert fill_template(SKELETON, said(VALUES)) == fill_template(SKELETON, said({**VALUES, "max_batch": "9"}))  # silence
    with pytest.raises(RepositoryError, match=r"config\.max_batch: .*no such parameter[\s\S]*triton_max_batch_size"):
        repository.fill(SKELETON, {**VALUES, "max_batch": "9"})


@pytest.mark.parametrize("key", ["engine_dir", "triton_max_batch_size", "max_queue_delay_microseconds"])
def test_a_second_fill_acts_or_names_the_key(key: str) -> None:
    once = repository.fill(SKELETON, VALUES)
    with pytest.raises(RepositoryError, match=f"config.{key}: .*no such parameter"):
        repository.fill(once, {key: "9"})
    assert '"/new"' in repository.fill(once, {"tokenizer_dir": "/new"})
    twice = fill_template(fill_template(SKELETON, said(VALUES)), "tokenizer_dir:/new")
    assert "/new" not in twice  # where NVIDIA's script is silent


@pytest.mark.parametrize(
    ("key", "value"), [("tokenizer_dir", " /t"), ("tokenizer_dir", "/t "), ("triton_max_batch_size", " 4")]
)
def test_a_blank_around_a_value_is_named(key: str, value: str) -> None:
    assert value in fill_template(SKELETON, said({**VALUES, key: value}))  # and there it stays
    with pytest.raises(RepositoryError, match=f"config.{key}: .*blank"):
        repository.fill(SKELETON, {**VALUES, key: value})


def test_a_blank_around_a_key_is_named() -> None:
    with pytest.raises(RepositoryError, match="no such parameter"):
        repository.fill(SKELETON, {**VALUES, " engine_dir": "/e"})


def test_a_persons_unused_key_is_named_and_forges_passed_over() -> None:
    files = (TextFile("postprocessing/config.pbtxt", "max_batch_size: ${triton_max_batch_size}\n"),)
    stated = {Role.POSTPROCESSING: {"enable_kv_cache_reuse": True}}
    (problem,) = repository.ignored(files, stated)
    assert problem.where == "serve.parameters.postprocessing.enable_kv_cache_reuse"
    assert repository.ignored(files, {Role.POSTPROCESSING: {"triton_max_batch_size": 4}}) == ()
