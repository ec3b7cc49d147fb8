"""The text of a family's Dockerfile: what it holds for given requirements, and that nothing else gets in."""

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from forge.machine.containers import dockerfile
from forge.schema.values import Requirements

TEMPLATE = (Path(__file__).parents[2] / "Dockerfiles" / "family.Dockerfile").read_text(encoding="utf-8")
BASE = "nvcr.io/nvidia/tritonserver@sha256:" + "a" * 64


def commands(text: str) -> list[str]:
    """The instructions of a Dockerfile, without comments."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [line for line in joined.splitlines() if line.strip()]


def test_requirements_are_installed_each_by_its_own_tool() -> None:
    text = dockerfile(BASE, Requirements(pip=("transformers>=4.55,<5", "datasets[audio]==3.1"), apt=("git-lfs",)), TEMPLATE)
    first, apt, pip = commands(text)
    assert first == f"FROM {BASE}"
    assert "apt-get install --yes --no-install-recommends git-lfs " in apt
    assert " 'transformers>=4.55,<5' 'datasets[audio]==3.1' " in pip


def test_without_requirements_nothing_is_run() -> None:
    assert commands(dockerfile(BASE, Requirements(), TEMPLATE)) == [f"FROM {BASE}"]
    assert len(commands(dockerfile(BASE, Requirements(apt=("git",)), TEMPLATE))) == 2


@pytest.mark.parametrize(
    "word",
    [
        *("--index-url=http://evil", "-r/etc/passwd", "x; rm -rf /", "x && id", "$(id)", "`id`", "x\nRUN id", "x\\", "a b", ""),
        *("git+https://evil/x", "./local", "x @ http://evil", "x'y", 'x"y', "x>=${HOME}", "x #", "x>1;python_version>'3'"),
    ],
)
def test_what_is_no_package_is_refused(word: str) -> None:
    for requirements in (Requirements(pip=("numpy", word)), Requirements(apt=("git", word))):
        with pytest.raises(ValueError, match="is not a"):
            dockerfile(BASE, requirements, TEMPLATE)


@pytest.mark.parametrize("word", ["tensorrt_llm==0.21.0", "TensorRT", "tensorrt.llm", "tensorrt-cu12[x]"])
def test_the_base_images_own_tensorrt_is_not_replaced(word: str) -> None:
    with pytest.raises(ValueError, match="brings its own"):
        dockerfile(BASE, Requirements(pip=(word,)), TEMPLATE)


@pytest.mark.parametrize("base", ["x\nRUN id", "-f", "a b", "x:1 AS y", ""])
def test_a_base_is_one_image(base: str) -> None:
    with pytest.raises(ValueError, match="is not an image"):
        dockerfile(base, Requirements(), TEMPLATE)


def test_a_dockerfile_of_ones_own_must_install_what_is_asked() -> None:
    with pytest.raises(ValueError, match=r"installs no \$\{pip\}"):
        dockerfile(BASE, Requirements(pip=("numpy",)), "FROM ${base}\n")
    with pytest.raises(ValueError, match=r"no line `FROM \$\{base\}`"):
        dockerfile(BASE, Requirements(), "FROM debian\n")


def test_ones_own_dockerfile_keeps_its_variables_and_comments() -> None:
    own = "from ${base}\nENV A=$HOME ${b}\nRUN apt-get install \\\n# why\n  ${apt} \\\n  && echo ${HOME}\nRUN x\n"
    assert dockerfile(BASE, Requirements(), own) == f"from {BASE}\nENV A=$HOME ${{b}}\nRUN x\n"
    assert dockerfile(BASE, Requirements(), "# ${apt} and ${base}\nFROM ${base}\n").startswith("# ${apt} and ${base}\n")
    assert "# why\n  git \\\n" in dockerfile(BASE, Requirements(apt=("git",)), own)


@given(st.lists(st.text(max_size=20)), st.lists(st.text(max_size=20)))
def test_any_value_is_refused_or_stays_in_its_place(pip: list[str], apt: list[str]) -> None:
    try:
        text = dockerfile(BASE, Requirements(tuple(pip), tuple(apt)), TEMPLATE)
    except ValueError:
        return
    lines = commands(text)
    assert [line.split()[0] for line in lines] == ["FROM", *["RUN"] * (len(lines) - 1)]
    words = [word for line in lines for word in shlex.split(line)]
    assert all(word in words and not word.startswith("-") for word in (*pip, *apt))
