"""The demo, the README, its picture and the examples ask one question: the model answers it rightly each time.

Asked without its second sentence SmolLM2-135M answers in made-up French about every other time, at the recipe's temperature.
"""

import html
import re
import subprocess
from pathlib import Path

from forge.cli.text import size
from forge.schema.twin_environment import converter_sources

ROOT = Path(__file__).parents[2]
QUESTION = "What is the capital of France? Answer in one sentence."
ANSWER = "The capital of France is Paris."


def test_one_question_is_asked_wherever_the_demo_is_shown() -> None:
    shown = (
        "Makefile",
        "README.md",
        "recipes/smollm2-135m-instruct.toml",
        "docs/record_run.py",
        "docs/bundle.md",
        "docs/openai.md",
    )
    for name in (*shown, "docs/client.md", "docs/python-api.md", "core/forge/serve/openai/page/page.js"):
        asked = re.findall(r"What is the capital of France\?[^\"\n]*", (ROOT / name).read_text())
        assert asked, name
        assert set(asked) == {QUESTION}, name


def test_picture_and_readme_show_its_answer() -> None:
    drawn = (ROOT / "docs/forge-run.svg").read_text()
    lines = [html.unescape(re.sub("<[^>]*>", "", text)).replace("\xa0", " ") for text in re.findall("<text.*?</text>", drawn)]
    at = next(at for at, line in enumerate(lines) if line.strip() == f"> {QUESTION}")
    assert ANSWER in " ".join(lines[at + 1 : at + 3])
    assert f'"{QUESTION}" --chat\n{ANSWER}\n' in (ROOT / "README.md").read_text()


def test_make_demo_shows_the_question_before_the_answer() -> None:
    demo = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    assert demo.index('printf "> %s\\n" "$$QUESTION"') < demo.index("forge generate")


def test_a_python_too_old_makes_no_environment(tmp_path: Path) -> None:
    old = tmp_path / "python3.10"
    old.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/asked\n[ "$1" != -c ] || {{ echo "$2" >&2; exit 1; }}\n')
    old.chmod(0o755)
    place = tmp_path / "venv"
    made = subprocess.run(
        ["make", "-C", ROOT, f"{place}/bin/python", f"PYTHON={old}", f"VENV={place}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode != 0
    assert "PYTHON=python3.12" in made.stderr
    assert (tmp_path / "asked").read_text() == "-c\n"
    assert not place.exists()


def test_samples_show_the_converter_as_large_as_it_is() -> None:
    wanted = size(sum(len(source.content.encode()) for source in converter_sources()))
    shown = [ROOT / name for name in ("README.md", "docs/cluster.md", "docs/forge-run.svg")]
    for file in shown:
        text = html.unescape(file.read_text()).replace("\xa0", " ")
        told = re.findall(r"\bconverter  .*?([0-9.]+ kB)", text)
        assert told, file.name
        assert set(told) == {wanted}, file.name
