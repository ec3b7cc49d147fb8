"""The command line: what is said where, in which form, and with which exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import jsonschema
import pytest
import tomli
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result

import store_makers
from cli_verbs import commands
from fakes import tiny_checkpoint
from forge.cli import VERBS, habits, main
from forge.fit.gpus import find
from forge.serve.state import States
from forge.store.store import Provenance

ROOT = Path(__file__).parents[2]

TINY = """
name = "tiny"
[source]
path = "checkpoint"
[runtime]
kind = "twin"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny checkpoint and its recipe, and a home of its own."""
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    (tmp_path / "checkpoint").mkdir()
    for path, content in tiny_checkpoint().items():
        (tmp_path / "checkpoint" / path).write_bytes(content)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def forge(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def verbs() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in commands().items():
        inner = command.commands if isinstance(command, click.Group) else dict[str, click.Command]()
        found += [(f"{name} {each}", one) for each, one in inner.items()] or [(name, command)]
    return found


@pytest.mark.parametrize(("name", "command"), verbs(), ids=[name for name, _ in verbs()])
def test_every_verb_shows_an_example_and_speaks_json(name: str, command: click.Command) -> None:
    shown = forge(*name.split(), "--help").output
    assert f"forge {name}" in shown.split("Example:")[1]
    assert {"as_json", "quiet", "verbose"} <= {option.name for option in command.params}


def test_the_list_of_verbs_repeats_each_verbs_own_words() -> None:
    assert {verb.name: verb.line for verb in VERBS} == {
        name: command.get_short_help_str(10**6) for name, command in commands().items()
    }
    assert [verb.name for verb in VERBS] == sorted(commands())


def test_a_misspelt_verb_is_answered_with_the_right_one() -> None:
    result = forge("serv")
    assert result.exit_code == 2
    assert "Did you mean 'serve'?" in result.stderr
    assert "mean" not in forge("zzz").stderr


def test_a_plan_names_each_step_with_its_state_and_why(place: Path) -> None:
    lines = forge("plan", place / "tiny.toml").stdout.splitlines()
    assert lines[0].split() == ["STEP", "KEY", "STATE", "SIZE", "WHY"]
    steps = lines[1 : lines.index("")]
    assert [line.split("  ")[0] for line in steps] == ["environment", "backends", "tiny: model", "tiny: entry"]
    assert any(line.startswith("tiny (twin), by ") for line in lines)  # and whether it fits
    assert all("miss" in line and "first build" in line for line in steps)


def test_a_plan_makes_nothing(place: Path) -> None:
    forge("plan", place / "tiny.toml")
    assert not (place / "home" / "store" / "artifacts").exists()


def test_json_is_one_document_and_nothing_else_on_stdout(place: Path) -> None:
    document = json.loads(forge("plan", "--json", place / "tiny.toml").stdout)
    assert [step["held"] for step in document["steps"]] == [False] * 4
    assert all(len(step["key"]) == 64 for step in document["steps"])


def test_a_plan_in_json_carries_what_is_worth_knowing_beforehand(place: Path) -> None:
    assert json.loads(forge("plan", "--json", place / "tiny.toml").stdout)["notes"] == []
    (place / "tiny.toml").write_text(TINY.replace("twin", "engine"))
    (note,) = json.loads(forge("plan", "--json", place / "tiny.toml").stdout)["notes"]
    assert note.startswith("tiny: its image has not been read yet")


def test_all_problems_of_a_recipe_name_file_key_and_fix(place: Path) -> None:
    (place / "tiny.toml").write_text(TINY.replace('"tiny"', '"../tiny"') + "[build]\nmax_batchsize = 4\nmax_input_len = 0\n")
    result = forge("plan", place / "tiny.toml")
    assert result.exit_code == 3
    assert result.stdout == ""
    for said in ("tiny.toml: name", "build.max_batchsize", "max_batch_size", "build.max_input_len"):
        assert said in result.stderr


def test_an_error_in_json_is_a_document_with_exit_code(place: Path) -> None:
    (place / "tiny.toml").write_text(TINY + "surprise = 1\n")
    result = forge("build", "--json", place / "tiny.toml")
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["exit_code"], result.exit_code) == ("RecipeError", 3, 3)
    assert "surprise" in error["problems"][0]["where"]


def test_the_end_of_a_log_is_shown_with_tail(place: Path) -> None:
    log = States(place / "home" / "servers").log(place / "models")
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\nthree\n")
    options = (("-n", "2"), ("--tail", "1", "--json"))
    shown = [forge("logs", "--repository", place / "models", *words).stdout for words in options]
    assert shown == ["two\nthree\n", '{"line":"three"}\n']
    assert forge("logs", "-n", "-1").exit_code == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("plan", "nowhere.toml"), 5),
        (("serve",), 8),
        (("stop",), 9),
        (("logs",), 9),
        (("generate", "tiny", "hello"), 9),
        (("plan", "unknown.toml"), 3),
        (("plan", "unlocked.toml", "--locked"), 12),
        (("build",), 2),
    ],
)
def test_each_family_of_errors_has_its_exit_code(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int
) -> None:
    monkeypatch.chdir(place)
    (place / "unknown.toml").write_text('family = "lama"\n' + TINY)
    (place / "unlocked.toml").write_text(TINY)
    result = forge(*words)
    assert result.exit_code == code, result.output
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("name", "command"), verbs(), ids=[name for name, _ in verbs()])
def test_wrong_arguments_of_any_verb_are_told_in_json_too(name: str, command: click.Command) -> None:
    for words in (("--nosuch",), *_wrong(command)):
        result = forge(*name.split(), "--json", *words)
        error = json.loads(result.stdout)["error"]
        assert (result.exit_code, error["exit_code"], error["kind"], result.stderr) == (2, 2, "UsageError", "")
        assert words[0].strip("-") in error["message"] or "Missing" in error["message"]
        assert error["hint"].startswith(f"Usage: {error['where']}")
        assert error["where"].split()[1:] == name.split()
    assert forge(*name.split(), "--nosuch", "--", "--json").stdout == ""


def _wrong(command: click.Command) -> list[tuple[str, ...]]:
    """Words that each name no choice of an option that has choices."""
    choices = [each for each in command.params if isinstance(each.type, click.Choice) and isinstance(each, click.Option)]
    return [(each.opts[-1], "nosuch") for each in choices]


def test_arguments_no_verb_has_are_told_in_json_where_wanted(place: Path) -> None:
    for words in (("serv", "--json"), ("--nosuch", "plan", "--json"), ("plan", "--json"), ("tune", "--json")):
        result = forge(*words)
        error = json.loads(result.stdout)["error"]
        assert (result.exit_code, error["kind"], result.stderr) == (2, "UsageError", "")
    late = forge("tune", place / "tiny.toml", "--for", "quality", "--json")  # what is only found within the verb
    assert "--quality FILE" in json.loads(late.stdout)["error"]["message"]


def test_a_misspelled_family_is_answered_with_what_was_meant(place: Path) -> None:
    (place / "tiny.toml").write_text('family = "lama"\n' + TINY)
    assert "llama" in forge("plan", place / "tiny.toml").stderr


def test_quiet_says_nothing_on_stderr(place: Path) -> None:
    assert forge("plan", "-q", place / "tiny.toml").stderr == ""


def test_new_writes_a_recipe_that_can_be_planned(place: Path) -> None:
    file = place / "drafted.toml"
    assert forge("new", place / "checkpoint", "-o", file).exit_code == 0
    assert tomli.loads(file.read_text())["family"] == "llama"
    assert forge("plan", "--runtime", "twin", file).exit_code == 0
    again = forge("new", place / "checkpoint", "-o", file)
    assert again.exit_code == 1
    assert "already" in again.stderr


def test_lock_writes_once_and_says_so(place: Path) -> None:
    assert json.loads(forge("lock", "--json", place / "tiny.toml").stdout)["changed"] is True
    assert json.loads(forge("lock", "--json", place / "tiny.toml").stdout)["changed"] is False
    assert forge("plan", "--locked", place / "tiny.toml").exit_code == 0


def test_the_schema_accepts_every_shipped_recipe() -> None:
    schema = json.loads(forge("schema").stdout)
    for recipe in (ROOT / "recipes").glob("*.toml"):
        jsonschema.validate(tomli.loads(recipe.read_text()), schema)


def test_plugins_shows_families_with_their_health() -> None:
    plugins = {plugin["name"]: plugin for plugin in json.loads(forge("plugins", "--json").stdout)["plugins"]}
    assert {"llama", "gemma"} <= plugins.keys()
    assert plugins["llama"]["health"] == "ok"
    assert plugins["llama"]["distribution"] == "triton-forge"


def test_a_file_of_two_artifacts_counts_once_in_the_sum(place: Path) -> None:
    store = store_makers.store(place / "home" / "store")
    model, _ = store.make(store_makers.key(1), store_makers.provenance(), lambda out: (out / "w").write_bytes(b"12345"))
    wanted = Provenance("entry", "Assemble", {}, {"model": model.key})
    store.make(store_makers.key(2), wanted, lambda out: os.link(model.path / "w", out / "w"))
    shown = json.loads(forge("cache", "ls", "--json").stdout)
    assert ([each["size"] for each in shown["artifacts"]], shown["size"]) == ([5, 5], 5)
    assert forge("cache", "ls").stdout.splitlines()[-1].startswith("2 artifacts, 5 B (10 B if each had its own: ")


def test_an_empty_cache_is_whole_and_has_nothing_to_give(place: Path) -> None:
    assert json.loads(forge("cache", "ls", "--json").stdout) == {"artifacts": [], "size": 0}
    assert forge("cache", "verify").exit_code == 0
    assert "freed 0 B" in forge("cache", "gc").stdout


@pytest.mark.parametrize("words", [("--older-than", "soon"), ("--max-size", "big"), ("--max-size", "-1GB")])
def test_a_wrong_amount_is_refused_by_the_command_line(words: tuple[str, str]) -> None:
    assert forge("cache", "gc", *words).exit_code == 2


@pytest.mark.parametrize(("verb", "code"), [("serve", 8), ("stop", 9)])
def test_a_repository_may_be_named_without_its_option(place: Path, verb: str, code: int) -> None:
    (place / "models").mkdir()
    bare, named = forge(verb, place / "models"), forge(verb, "--repository", place / "models")
    assert (bare.exit_code, bare.stderr) == (code, named.stderr)
    assert f"{place / 'models'}: " in bare.stderr


def test_stop_takes_one_argument_and_a_deployments_file(place: Path) -> None:
    (place / "models").mkdir()
    (place / "both.toml").write_text('repository = "models"\nrecipes = ["none.toml"]\n')
    assert forge("stop", place / "both.toml").stderr == forge("stop", place / "models").stderr
    for words in (("--all", "models"), ("--all", "--repository", "models"), ("models", "--repository", "others")):
        refused = forge("stop", *words)
        assert refused.exit_code == 2
        assert "say one of them" in refused.stderr


def test_nothing_runs_and_status_says_so(place: Path) -> None:
    assert forge("status").stdout == "no server is running\n"
    assert json.loads(forge("status", "--json").stdout) == {"servers": []}


def test_a_file_that_cannot_be_written_gives_no_traceback(place: Path) -> None:
    recipe = (place / "tiny.toml").rename(place / f"{'tiny' * 57}.toml")  # what is laid aside has too long a name
    result = forge("lock", recipe)
    assert result.exit_code == 1
    assert f"{recipe.name}.lock" in result.stderr
    assert "Traceback" not in result.output


def test_each_verbs_summary_fits_its_line_of_the_list() -> None:
    shown = CliRunner().invoke(main, ["--help"], env={"COLUMNS": "80"}).output
    listed = shown.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert len(listed) == len(VERBS)
    assert not [line for line in listed if line.endswith("...") or len(line) > 80]
    assert "FORGE_HOME" in shown


@pytest.mark.parametrize("word", sorted(habits()))
def test_another_tools_word_is_answered_with_the_verb_meant(word: str) -> None:
    result = forge(word)
    assert result.exit_code == 2
    assert f"`forge {habits()[word]}` is what does that here" in result.stderr
    meant = habits()[word].split()[0]
    assert meant.startswith("--") or meant in commands()
    assert word not in commands()


def completed(*words: str, incomplete: str) -> list[str]:
    shell = BashComplete(main, {}, "forge", "_FORGE_COMPLETE")
    return [item.value for item in shell.get_completions(list(words), incomplete) if item.type == "plain"]


def test_verbs_recipes_and_gpus_complete(place: Path) -> None:
    assert completed(incomplete="pl") == ["plan", "plugins"]
    assert completed("plan", incomplete="gemma-2b-") == ["gemma-2b-it"]
    assert completed("run", incomplete="smol") == ["smollm2-135m-instruct", "smollm2-135m-storyteller"]
    assert completed("new", "--example", incomplete="flan") == ["flan-t5-base"]
    assert "RTX-4090" in completed("fit", "x", "--gpu", incomplete="rtx")
    assert find("RTX-4090") == find("RTX 4090")
    assert completed("chat", incomplete="") == []  # nothing is served, and no error is shown


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_shells_script_asks_forge_for_completions(shell: str) -> None:
    script = forge("completion", shell).stdout
    assert f"_FORGE_COMPLETE={shell}_complete" in script


def test_a_shipped_recipe_is_copied_out_by_its_name(place: Path) -> None:
    target = place / "mine.toml"
    assert forge("new", "--example", "gemma-2b-it", "-o", target).exit_code == 0
    assert target.read_text() == (ROOT / "recipes" / "gemma-2b-it.toml").read_text()
    missing = forge("new", "--example", "gema-2b-it")
    assert missing.exit_code == 5
    assert "did you mean 'gemma-2b-it'?" in missing.stderr
    assert forge("new").exit_code == 2
    assert forge("new", "acme/x", "--example", "gemma-2b-it").exit_code == 2
    for ignored in ("--name", "--revision"):
        assert forge("new", "--example", "gemma-2b-it", ignored, "mine").exit_code == 2


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_keep_no_verb_from_its_work(place: Path, closed: str) -> None:
    """As some lines of cron have them."""
    words = (sys.executable, "-c", "from forge.cli import main; main()", "new", "--example", "gemma-2b-it", "-o", "mine.toml")
    done = subprocess.run(("sh", "-c", f'exec "$@" {closed}', "sh", *words), cwd=place, check=False)
    assert done.returncode == 0
    assert (place / "mine.toml").is_file()
