"""A hostile recipe gets nowhere: what it says is refused in forge's words, or is one inert word of one argv."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings, strategies as st
from msgspec.structs import replace

from docker_fixture import environ, images_removed, names
from fake_containers import HELP
from fake_wiring import World
from forge import protobuf
from forge.api.forge import Forge
from forge.errors import ForgeError, RecipeError
from forge.machine.containers import ContainerRun
from standin import checkpoints
from standin.tree import Image

CANARY = "forge-canary"
BASE: dict[str, dict[str, object]] = {
    "": {"name": "tiny"},
    "source": {"hub": "acme/tiny"},
    "runtime": {"image": "25.08", "gpus": "none"},
    "convert": {},
    "build": {"max_batch_size": 2},
    "serve": {},
}
PLACES = [
    *(("", key) for key in ("name", "family", "variant", "nonsense")),
    *(("source", key) for key in ("hub", "git", "path", "gguf", "wheel", "revision", "file")),
    *(("draft", key) for key in ("hub", "git", "path")),
    *(("runtime", key) for key in ("kind", "image", "gpus")),
    *(("convert", key) for key in ("dtype", "quantization")),
    *(("convert.args", key) for key in ("workers", "output_dir", "KEY")),
    *(("build.args", key) for key in ("workers", "gemm_plugin", "KEY")),
    *(("serve.parameters.tensorrt_llm", key) for key in ("gpu_device_ids", "engine_dir", "KEY")),
    ("serve.parameters.preprocessing", "tokenizer_dir"),
    ("convert.calibration", "path"),
]
"""(table, key) of every text in a recipe that could reach a command, a path or a config; KEY: the hostile text is the key."""
TRICKS = [
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"; touch {CANARY} #",
    f"a && touch {CANARY}",
    f"| tee {CANARY}",
    f"--output_dir={CANARY}",
    f"--privileged {CANARY}",
    f"-v /:/host/{CANARY}",
    f"../{CANARY}",
    f"../../../../{CANARY}",
    f"/{CANARY}",
    f"/forge/out/../{CANARY}",
    f"x\n--output_dir\n{CANARY}",
    f"x\0{CANARY}",
    f"{{{CANARY}}}",
    f"${{{CANARY}}}",
    f'"}} }} parameters {{ key: "{CANARY}" }} #',
    f"%(x)s{{0}}{CANARY}",
    f"é\u202e🦜{CANARY}",
    CANARY * 300,
    f"FROM scratch\nRUN touch /{CANARY}",
    f"'{CANARY}'\\\"",
]
HOSTILE = st.one_of(
    st.sampled_from(TRICKS),
    st.tuples(st.sampled_from(TRICKS), st.text(max_size=20)).map("".join),
    st.tuples(st.text(max_size=5), st.sampled_from(TRICKS)).map("".join),
)


def toml(place: tuple[str, str], value: str) -> str:
    """The base recipe with one more text in it."""
    table, key = place
    written = {name: dict(keys) for name, keys in BASE.items()}
    written.setdefault(table, {})
    if table == "source" and key not in ("revision", "file"):
        written[table] = {}
    if key == "file":
        written[table] = {"wheel": "a-b==1"}
    if table == "convert.calibration":
        written["convert"]["quantization"] = "fp8"
    written[table][value if key == "KEY" else key] = "x" if key == "KEY" else value
    lines: list[str] = []
    for name, keys in written.items():
        lines += [f"[{name}]"] if name else []
        lines += [f"{_quoted(word)} = {_quoted(said) if isinstance(said, str) else said}" for word, said in keys.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """TOML's basic strings are JSON's, but for DEL and for characters beyond the first plane."""
    return "".join(c if ord(c) > 0x7F else json.dumps(c)[1:-1] if c != "\x7f" else "\\u007f" for c in text).join('""')


def inert(run: ContainerRun, value: str) -> bool:
    """Whether ``value`` is nothing in a command but whole words, and no word by itself that reads as an option."""
    mine = [word for word in run.command.argv if CANARY in word]
    return all((word == value and not word.startswith("-")) or word.partition("=")[2] == value for word in mine)


@pytest.fixture(scope="module")
def bench() -> Iterator[tuple[World, Forge, Path]]:
    """A Forge on fakes in a folder of its own; the current folder is another one in it."""
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        (folder / "cwd").mkdir()
        patch.chdir(folder / "cwd")
        world = World()
        yield world, world.shop(folder / "home"), folder


@settings(max_examples=80)
@given(st.sampled_from(PLACES), HOSTILE)
def test_any_text_in_a_recipe_is_refused_or_inert(bench: tuple[World, Forge, Path], place: tuple[str, str], value: str) -> None:
    world, shop, folder = bench
    recipe = folder / "recipe.toml"
    with suppress(UnicodeEncodeError):
        recipe.write_text(toml(place, value), encoding="utf-8")
        world.containers.ran.clear()
        with suppress(ForgeError):  # whatever else is raised is no answer to a recipe
            built = shop.build([recipe], repository=folder / "models")
            for name in (name for model in built.models for name in model.roles.values()):
                config = protobuf.parse((built.repository / name / "config.pbtxt").read_text())
                assert [key for key in config.parameters if CANARY in key] == []
        assert all(inert(run, value) for run in world.containers.ran), [run.command.argv for run in world.containers.ran]
    assert {*os.listdir(folder)} <= {"cwd", "home", "models", "recipe.toml"}
    assert os.listdir(folder / "cwd") == []
    assert not any(CANARY in name for _, folders, files in os.walk(folder) for name in (*folders, *files))


def test_the_harness_notices_a_word_read_as_an_option() -> None:
    world = World()
    assert "--workers" in HELP
    with TemporaryDirectory() as name:
        recipe = Path(name) / "recipe.toml"
        recipe.write_text(toml(("convert.args", "workers"), f"--output_dir={CANARY}"))
        world.shop(Path(name) / "home").build([recipe], repository=Path(name) / "models")
    (run, *_) = world.containers.ran
    assert f"--workers=--output_dir={CANARY}" in run.command.argv
    assert inert(run, f"--output_dir={CANARY}")
    split = replace(run.command, argv=("x", "--workers", f"--output_dir={CANARY}"))
    assert not inert(replace(run, command=split), f"--output_dir={CANARY}")


HARMLESS = [trick for trick in TRICKS if not any(sign in trick for sign in ("\n", "\0", "${"))]
"""Those that a recipe may say: control characters and placeholders are refused."""
RECIPE = """
name = "tiny"
[source]
path = "tiny"
[runtime]
image = "{image}"
gpus = "none"
[convert]
dtype = "float32"
[convert.args]
hidden_act = {words}
[build]
max_batch_size = 2
max_input_len = 60
max_seq_len = 100
[build.args]
profiling_verbosity = "layer_names_only"
cluster_key = {words}
[sampling]
max_tokens = 8
stop = [{words}]
[serve.parameters.tensorrt_llm]
gpu_device_ids = {words}
"""


@pytest.mark.slow
def test_every_trick_at_once_does_nothing_in_real_containers(
    engine: str, standin: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.llama(tmp_path / "tiny")
    recipe = tmp_path / "-v $(touch x);.toml"
    text = RECIPE.format(image=standin.reference, words=_quoted(" ".join(HARMLESS)))
    recipe.write_text(text, encoding="utf-8")
    (tmp_path / "Dockerfiles").mkdir()
    (tmp_path / "Dockerfiles" / "family.Dockerfile").write_text("FROM ${base}\nRUN echo ${pip}\n")
    monkeypatch.chdir(tmp_path)
    shop = Forge(tmp_path / "home", environ(engine))
    before = names(engine)
    with images_removed(engine):
        built = shop.build([recipe], repository=tmp_path / "models")
    assert (built.repository / "_assets" / "tiny" / "engines" / "rank0.engine").is_file()
    assert names(engine) <= before
    assert sorted(os.listdir(tmp_path)) == sorted([recipe.name, "tiny", "Dockerfiles", "home", "models"])
    everything = [name for _, folders, files in os.walk(tmp_path) for name in (*folders, *files)]
    assert not any(CANARY in name for name in everything)
    assert not Path("/", CANARY).exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runtime.image", "--privileged"),
        ("runtime.image", f"x $(touch {CANARY})"),
        ("runtime.gpus", "all --privileged"),
        ("runtime.gpus", "-1"),
        ("name", "../x"),
        ("name", "-rf"),
        ("source.hub", "../../etc"),
        ("source.path", "-x"),
        ("source.revision", "--upload-pack=x"),
        ("source.git", f"ext::sh -c touch% {CANARY}"),
        ("source.git", f"--upload-pack=touch {CANARY}"),
        ("source.file", "../../x"),
    ],
)
def test_what_could_leave_its_place_is_refused_by_its_key(tmp_path: Path, key: str, value: str) -> None:
    table, _, last = key.rpartition(".")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml((table, last), value))
    world = World()
    with pytest.raises(RecipeError) as caught:
        world.shop(tmp_path / "home").build([recipe], repository=tmp_path / "models")
    assert any(problem.where.endswith(key) for problem in caught.value.problems), str(caught.value)
    assert world.containers.ran == []
    assert world.origin.fetches == 0
