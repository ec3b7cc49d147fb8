"""Every family of errors has one exit code, and the table in the docs says which."""

import re
import subprocess
import sys
from pathlib import Path

import goaway
from forge import errors
from forge.errors import ForgeError, Problem, RecipeError

DOCS = Path(__file__).parents[2] / "docs" / "exit-codes.md"


def families() -> list[type[ForgeError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ForgeError) and (kind is ForgeError or ForgeError in kind.__bases__)
    ]


def test_no_two_families_share_an_exit_code() -> None:
    codes = [family.exit_code for family in families()]
    assert len(set(codes)) == len(codes)


def test_the_documented_table_is_the_one_that_runs() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: int(code) for code, name in rows} == {family.__name__: family.exit_code for family in families()}


def test_a_message_says_what_where_and_what_to_do_next() -> None:
    text = str(ForgeError("it broke", where="here.toml", hint="fix it"))
    assert text == "here.toml: it broke\n    fix it"


def test_a_recipe_error_shows_every_problem() -> None:
    error = RecipeError((Problem("a.toml: x", "wrong"), Problem("a.toml: y", "wrong too", "set y to 1")))
    assert str(error).splitlines() == ["a.toml: x: wrong", "a.toml: y: wrong too", "    set y to 1"]


ASKING = """
from forge.cli import main
main(["config", "show"], standalone_mode=False)
from forge.client import Client, InferenceError, Request
with Client({address!r}, timeout=5) as client:
    try:
        client.ask(Request("any", "hello", 1))
    except InferenceError as error:
        print(error.trouble)
"""


def test_a_broken_connection_is_no_line_of_grpcs_log() -> None:
    with goaway.server() as address:
        words = (sys.executable, "-c", ASKING.format(address=address))
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.endswith("away\n")
