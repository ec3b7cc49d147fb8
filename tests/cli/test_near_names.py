"""What was probably meant by a name that is not there: one rule, for keys, flags, models, recipes, cards and verbs alike."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from forge.bench.compare import limit
from forge.cli import main
from forge.errors import ForgeError, meant, near
from forge.fit.gpus import find
from forge.recipe import shipped
from forge.repository.publish import holding

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        ("gema", ("llama", "gemma"), "gemma"),
        ("smollm2", ("qwen2.5-7b-instruct", "smollm2-135m-instruct"), "smollm2-135m-instruct"),
        ("SmolLM2", ("smollm2-135m-instruct",), "smollm2-135m-instruct"),
        ("storyteller", ("smollm2-135m-instruct", "smollm2-135m-storyteller"), "smollm2-135m-storyteller"),
        ("instruct", ("a-chat", "smollm2-135m-instruct"), "smollm2-135m-instruct"),
        ("batch_size", ("max_batch_size", "max_seq_len"), "max_batch_size"),
        ("135m", ("llama-7b", "smollm2-135m-instruct"), "smollm2-135m-instruct"),
        ("ab", ("cdabcdefgh",), ""),
        ("", ("a",), ""),
        ("nothing", (), ""),
        ("TP", ("tp",), "tp"),
    ],
)
def test_a_near_name_is_alike_begins_so_or_holds_it(word: str, known: tuple[str, ...], found: str) -> None:
    assert near(word, known) == found
    assert meant(word, known, "none") == (f"did you mean {found!r}?" if found else "none")


@pytest.mark.parametrize(
    ("told", "hint"),
    [
        (lambda: shipped.text("smollm2"), "did you mean 'smollm2-135m-instruct'?"),
        (lambda: limit("ttft>1.05x"), "did you mean 'ttft_"),
        (lambda: find("RTX 5099"), "did you mean '"),
    ],
)
def test_errors_ask_for_a_name_by_its_beginning(told: Callable[[], object], hint: str) -> None:
    with pytest.raises(ForgeError) as refused:
        told()
    assert hint in refused.value.hint


def test_models_that_are_not_there_are_told_with_the_nearest(tmp_path: Path) -> None:
    assert holding("smollm2", ["gemma", "smollm2-135m"]) == "did you mean 'smollm2-135m'? It holds: gemma, smollm2-135m."
    assert holding("smollm2", []) == "It holds: nothing."
    done = CliRunner().invoke(main, ["plan", "smollm2"], env={"FORGE_HOME": str(tmp_path)})
    assert "did you mean 'smollm2-135m-instruct'" in done.output
    assert "Did you mean 'generate'?" in CliRunner().invoke(main, ["gener"]).output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("serve", "nowhere"), ("nowhere: there is no such folder or file", "name a repository or a deployment's file")),
        (("stop", "nowhere"), ("nowhere: no server is running\n", "has none to stop")),
        (("build", "full"), ("a folder stands there", "name a file that is in it: full/a.toml, full/b.toml")),
        (("build", "bare"), ("a folder stands there", "no .toml file is in it", "`forge new bare`")),
        (("generate", "hi there"), ("Missing argument 'PROMPT'. MODEL comes first, then PROMPT; served: none.",)),
        (("generate", "m", "hi", "--json-schema", '{"type": "object"}'), ("'--json-schema': this is JSON", "into a file")),
        (("generate", "m", "hi", "--json-schema", "[" * 5000), ("'--json-schema': this is JSON", "into a file")),
    ],
)
def test_what_was_misplaced_is_told_with_what_belongs_there(
    words: tuple[str, ...], told: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("full", "bare"):
        (tmp_path / folder).mkdir()
    for name in ("b.toml", "a.toml", "c.txt"):
        (tmp_path / "full" / name).touch()
    done = CliRunner().invoke(main, words, env={"FORGE_HOME": str(tmp_path / "home")})
    assert done.exit_code != 0
    assert [part for part in told if part not in done.output] == []


def test_no_other_file_has_a_rule_of_its_own() -> None:
    """The backend in vLLM's process does without forge: a contract of pyproject.toml."""
    own = {"core/forge/errors.py", "core/forge/vllm/sampling.py"}
    named = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "core").rglob("*.py")}
    assert {name for name, text in named.items() if "get_close_matches" in text} == own
