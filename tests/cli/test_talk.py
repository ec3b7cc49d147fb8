"""`forge chat` at a terminal: its commands, several lines, history, and what Ctrl-C ends."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from forge.api.forge import Forge
from forge.cli import main
from forge.cli.lines import Typist, piped
from forge.cli.output import Output
from forge.cli.talk import Talk
from forge.client.conversation import COMMANDS, Conversation, overview
from patience import PATIENCE, soon
from tiny_served import Tiny

TALK = [("user", "hello"), ("assistant", "hi"), ("user", "and?"), ("assistant", "no")]


@pytest.fixture
def talk() -> Conversation:
    return Conversation("Be brief.", list(TALK))


def test_the_system_text_stands_before_what_was_said(talk: Conversation) -> None:
    assert talk.messages == [("system", "Be brief."), *TALK]
    talk.command("/system Be long.")
    assert talk.messages[0] == ("system", "Be long.")
    talk.command("/system")
    assert talk.messages == TALK


def test_clear_forgets_the_talk_and_keeps_the_system_text(talk: Conversation) -> None:
    talk.command("/clear")
    assert talk.messages == [("system", "Be brief.")]


def test_retry_takes_the_last_question_back_and_asks_it_again(talk: Conversation) -> None:
    talk.command("/retry")
    assert (talk.again, talk.turns) == ("and?", TALK[:2])
    assert Conversation().command("/retry") == "nothing was asked yet"


def test_temperature_and_seed_hold_until_they_are_taken_back(talk: Conversation) -> None:
    assert talk.command("/temperature 0.5") == "temperature: 0.5"
    talk.command("/seed 7")
    assert talk.settings == {"temperature": 0.5, "seed": 7}
    talk.command("/seed")
    assert talk.settings == {"temperature": 0.5}


@pytest.mark.parametrize(
    "line", ["/temperature -1", "/temperature warm", "/temperature nan", "/seed 1.5", "/seed -1", f"/seed {2**64}"]
)
def test_a_value_that_is_none_is_said_and_changes_nothing(talk: Conversation, line: str) -> None:
    assert "allowed: a" in talk.command(line)
    assert talk.settings == {}


def test_a_talk_is_saved_as_text_or_json_overwriting_nothing(talk: Conversation, tmp_path: Path) -> None:
    talk.command(f"/save {tmp_path}/talk.json")
    assert json.loads((tmp_path / "talk.json").read_text())[0] == {"role": "system", "content": "Be brief."}
    talk.command(f"/save {tmp_path}/talk.txt")
    assert (tmp_path / "talk.txt").read_text().startswith("system: Be brief.\n\nuser: hello\n\n")
    assert "there already" in talk.command(f"/save {tmp_path}/talk.txt")
    assert "No such file" in talk.command(f"/save {tmp_path}/nowhere/talk.txt")


def test_an_unknown_command_is_answered_with_the_one_meant(talk: Conversation) -> None:
    assert talk.command("/temprature 3") == "there is no /temprature; did you mean /temperature?"
    assert "/help" in talk.command("/zzz")


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit", "/BYE"])
def test_a_talk_ends_by_each_word_that_people_type(talk: Conversation, word: str) -> None:
    talk.command(word)
    assert talk.ended


def test_help_names_every_command(talk: Conversation) -> None:
    assert talk.command("/help") == overview()
    assert all(name in overview() for name in COMMANDS)
    assert max(map(len, overview().splitlines())) <= 80


class Hasty:
    """A person whose Ctrl-C comes after the prompt, before the answer."""

    def __init__(self) -> None:
        self.left: list[str | type[BaseException]] = [KeyboardInterrupt, "hello"]

    def text(self) -> str | None:
        said = self.left.pop(0) if self.left else None
        if isinstance(said, str) or said is None:
            return said
        raise said

    def close(self) -> None:
        pass


def test_ctrl_c_between_prompt_and_answer_ends_no_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def ask(_: Talk, question: str, *, again: bool = False) -> None:
        asked.append(question)

    def opened(_: Path) -> Hasty:
        return Hasty()

    monkeypatch.setattr(Talk, "ask", ask)
    monkeypatch.setattr(Talk, "typed", True)
    monkeypatch.setattr("forge.cli.talk.Typist", opened)
    place = SimpleNamespace(home=Path(), model=SimpleNamespace(name="tiny", runtime="twin"))
    Talk(Output(quiet=True), cast("Any", place), cast("Any", place), {}).run()
    assert asked == ["hello"]


@pytest.mark.parametrize(
    ("heard", "then", "kept"),
    [
        (["so"], TALK[:2], TALK[:2]),  # just before it was asked
        ([], [*TALK[:2], ("user", "hello")], TALK[:2]),
        (["so", " far"], [*TALK[:2], ("user", "hello")], [*TALK[:2], ("user", "hello"), ("assistant", "so far")]),
        (
            ["whole"],
            [*TALK[:2], ("user", "hello"), ("assistant", "whole")],
            [*TALK[:2], ("user", "hello"), ("assistant", "whole")],
        ),
    ],
    ids=["not asked yet", "nothing heard", "partly heard", "answered"],
)
def test_ctrl_c_keeps_of_an_answer_what_was_heard(
    monkeypatch: pytest.MonkeyPatch, heard: list[str], then: list[tuple[str, str]], kept: list[tuple[str, str]]
) -> None:
    def ask(talk: Talk, _: str, *, again: bool = False) -> None:
        del again
        talk.conversation.turns[:] = then
        talk._heard[:] = heard  # pyright: ignore[reportPrivateUsage]
        raise KeyboardInterrupt

    monkeypatch.setattr(Talk, "ask", ask)
    place = SimpleNamespace(home=Path(), model=SimpleNamespace(name="tiny", runtime="twin"))
    talk = Talk(Output(quiet=True), cast("Any", place), cast("Any", place), {})
    talk._answer("hello", again=False)  # pyright: ignore[reportPrivateUsage]
    assert talk.conversation.turns == kept


def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *lines: str | type[BaseException]) -> list[str]:
    """The texts of what is typed line by line; Ctrl-D follows."""
    left: Iterator[str | type[BaseException]] = iter((*lines, EOFError))

    def line(_: str) -> str:
        said = next(left)
        if isinstance(said, str):
            return said
        raise said

    monkeypatch.setattr("builtins.input", line)
    return list(iter(Typist(tmp_path / "history").text, None))


def test_several_lines_stand_between_quotes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert typed(monkeypatch, tmp_path, '"""one', "", 'two"""', "", "three") == ["one\n\ntwo", "three"]
    assert typed(monkeypatch, tmp_path, '"""in one line"""') == ["in one line"]


def test_ctrl_c_at_the_prompt_ends_no_talk_sigterm_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert typed(monkeypatch, tmp_path, KeyboardInterrupt, "go on", '"""half', KeyboardInterrupt, "on") == ["go on", "on"]

    class Terminated(KeyboardInterrupt):
        pass

    with pytest.raises(Terminated):
        typed(monkeypatch, tmp_path, Terminated)


def test_lines_of_a_pipe_end_at_an_empty_one() -> None:
    assert list(piped(["one\n", " two \n", "\n", "three\n"])) == ["one", "two"]


class Terminal:
    """`forge` on a terminal of its own."""

    def __init__(self, home: Path, *words: str) -> None:
        self.fd, child = pty.openpty()
        environ = {**os.environ, "FORGE_HOME": str(home), "TERM": "dumb"}
        program = [sys.executable, "-c", "from forge.cli import main; main()", *words]
        self.process = subprocess.Popen(program, stdin=child, stdout=child, stderr=child, env=environ, start_new_session=True)
        os.close(child)
        self.seen = ""

    def until(self, mark: str) -> str:
        """What has come since, up to ``mark``."""
        end, found = time.monotonic() + PATIENCE, ""
        while mark not in self.seen and time.monotonic() < end:
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:  # the other end is closed
                    break
        assert mark in self.seen, self.seen
        found, _, self.seen = self.seen.partition(mark)
        return found

    def type(self, line: str) -> None:
        os.write(self.fd, f"{line}\n".encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal(tiny: Tiny, home: Path) -> Iterator[Terminal]:
    opened = Terminal(
        home, "chat", "tiny", "--repository", str(tiny.target.repository), "--max-tokens", "100", "--min-tokens", "90"
    )
    yield opened
    opened.close()


def interrupted(terminal: Terminal) -> bool:
    """Whether Ctrl-C came while the model answered."""
    terminal.type("hello")
    terminal.until("hello\r\n")
    assert soon(lambda: bool(terminal.seen or select.select([terminal.fd], [], [], 0)[0]), pause=0.001)  # of the answer
    terminal.process.send_signal(signal.SIGINT)
    return "(stopped)" in terminal.until("> ")


@pytest.mark.slow
def test_a_terminal_talk_outlives_ctrl_c_and_goes_on(terminal: Terminal, home: Path, tmp_path: Path) -> None:
    assert "tiny (twin). /help shows" in terminal.until("> ")
    assert any(interrupted(terminal) for _ in range(20))  # an answer may be over before this gets to it
    terminal.type("/temperature 0")
    assert "temperature: 0.0" in terminal.until("> ")
    terminal.type('"""one')
    terminal.until("... ")
    terminal.type('two"""')
    terminal.until("> ")
    terminal.type("/retry")
    assert "the answer stays the same" in terminal.until("> ")
    terminal.type(f"/save {tmp_path}/talk.json")
    terminal.until("written")
    terminal.type("/bye")
    assert terminal.process.wait(PATIENCE) == 0
    said = json.loads((tmp_path / "talk.json").read_text())
    assert [turn["content"] for turn in said if turn["role"] == "user"][-1] == "one\ntwo"
    history = home / "chat_history"
    assert "/temperature 0" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_missing_chat_template_is_said_before_anything_is_asked(tiny: Tiny, home: Path) -> None:
    settings = tiny.target.tokenizer / "tokenizer_config.json"
    before = settings.read_text()
    whole = json.loads(before)
    del whole["chat_template"]
    settings.unlink()
    settings.write_text(json.dumps(whole))
    try:
        opened = Terminal(home, "chat", "tiny", "--repository", str(tiny.target.repository))
        said = opened.until("forge generate")
        assert "no chat template" in said
        assert "> " not in said
        assert opened.process.wait(PATIENCE) == 10
        opened.close()
    finally:
        settings.write_text(before)


@pytest.mark.slow
@pytest.mark.parametrize(("least", "code"), [("5", 17), ("-1000", 0)])
def test_an_answer_of_run_is_judged_as_generates_is(tiny: Tiny, home: Path, least: str, code: int) -> None:
    place = tiny.target.repository
    recipe = place.parent / "tiny.toml"
    words = ["run", str(recipe), "hello", "--repository", str(place), "--max-tokens", "3", "--min-logprob", least]
    done = CliRunner(env={"FORGE_HOME": str(home)}).invoke(main, words)
    assert done.exit_code == code, done.output
    assert "is served at" in done.output


@pytest.mark.slow
def test_two_runs_at_once_end_at_one_server(tiny: Tiny, home: Path, shop: Forge, tmp_path: Path) -> None:
    """Whoever comes second, and at whatever point of the other's start, waits for that and asks the same server."""
    place = tmp_path / "repository"
    words = ["run", str(tiny.recipe), "hello", "--repository", str(place), "--max-tokens", "3"]
    program = [sys.executable, "-c", "from forge.cli import main; main()", *words]
    both = [
        subprocess.Popen(
            program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "FORGE_HOME": str(home)}
        )
        for _ in range(2)
    ]
    said = [each.communicate(timeout=PATIENCE) for each in both]
    try:
        assert [each.returncode for each in both] == [0, 0], said
        assert said[0][0] == said[1][0] != ""
        assert len({line for _, told in said for line in told.splitlines() if "is served at" in line}) == 1
    finally:
        for running in shop.servers():
            if running.repository == str(place):
                shop.stop(running)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["chat", "generate"])
def test_what_is_no_text_is_not_asked(tiny: Tiny, home: Path, verb: str) -> None:
    words = [verb, "tiny", *(["-"] if verb == "generate" else []), "--repository", str(tiny.target.repository)]
    done = CliRunner(env={"FORGE_HOME": str(home)}).invoke(main, words, input=b"a\xff\xfe b\n")
    assert (done.exit_code, "standard input is not UTF-8 text" in done.output) == (2, True), done.output


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt_is_said_before_anything_is_built(tmp_path: Path, prompt: str) -> None:
    done = CliRunner(env={"FORGE_HOME": str(tmp_path / "home")}).invoke(main, ["run", "smollm2-135m-instruct", prompt])
    assert (done.exit_code, "the prompt is empty" in done.output) == (2, True), done.output
    assert not (tmp_path / "home").exists()


def test_a_wrong_schema_is_said_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("[" * 100_000)
    words = ["run", "smollm2-135m-instruct", "hello", "--json-schema", str(tmp_path / "odd.json")]
    done = CliRunner(env={"FORGE_HOME": str(tmp_path / "home")}).invoke(main, words)
    assert (done.exit_code, "the JSON schema is no JSON" in done.output) == (10, True), done.output
    assert not (tmp_path / "home").exists()
