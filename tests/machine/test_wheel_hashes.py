"""What an environment installs is held to sha256: by a real pip and a real uv, from an index that serves another wheel."""

import os
import runpy
import shutil
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from forge.errors import SourceError
from forge.machine.environments import PrivateEnvironments, host
from forge.schema.values import Environment
from forge.schema.wheels import shipped

ROOT = Path(__file__).parents[2]
UNKNOWN = frozenset({"torch==2.13.0+cpu"})
"""Pins that PyPI has not."""


def index(folder: Path, name: str, version: str, code: str, needs: str = "") -> str:
    """A package index of one wheel, which needs another package; the wheel's sha256."""
    place, info = folder / name, f"{name}-{version}.dist-info"
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{name}-{version}-py3-none-any.whl"
    texts = {
        f"{name}/__init__.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs and f'Requires-Dist: {needs}'}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in texts.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in (*texts, f"{info}/RECORD")))
    digest = sha256(file.read_bytes()).hexdigest()
    (place / "index.html").write_text(f'<a href="{file.name}#sha256={digest}">{file.name}</a>', encoding="utf-8")
    return digest


def installer(tmp_path: Path, tool: str) -> PrivateEnvironments:
    """Who installs from the index in ``tmp_path`` alone, by pip or by uv."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    if tool == "uv":
        found = shutil.which("uv")
        if found is None:
            pytest.skip("there is no uv")
        (programs / "uv").symlink_to(found)
    there = (tmp_path / "index").as_uri()
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": there, "PIP_NO_CACHE_DIR": "1"}
    settings |= {"UV_NO_CONFIG": "1", "UV_DEFAULT_INDEX": there, "UV_NO_CACHE": "1", "HOME": str(tmp_path)}
    return PrivateEnvironments({"PATH": f"{programs}:/usr/bin:/bin", **settings})


def made(tmp_path: Path, tool: str, pin: str, hashes: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The packages that an environment of this pin holds."""
    here = host(os.environ)
    wanted = Environment(here.python, here.platform, (), (pin,))
    into = tmp_path / "into"
    try:
        installer(tmp_path, tool).make(wanted, here.interpreter, into, lambda _: None, hashes)
    finally:
        held = sorted(path.name for path in into.glob("lib/python*/site-packages/*"))
    return held


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_a_tampered_package_is_refused_by_name_and_hash(tmp_path: Path, tool: str) -> None:
    got = index(tmp_path / "index", "jinja2", "3.1.6", "raise SystemExit('not jinja2')\n")
    with pytest.raises(SourceError) as caught:
        made(tmp_path, tool, "jinja2==3.1.6", {})
    (expected,) = shipped()["jinja2==3.1.6"]
    assert f"jinja2==3.1.6: sha256 {expected} was expected, the index gave {got}" in str(caught.value)
    assert "index-url" in caught.value.hint
    assert caught.value.exit_code == 5
    assert [*(tmp_path / "into").glob("lib/python*/site-packages/*")] == []


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_a_lock_can_take_an_indexs_own_build(tmp_path: Path, tool: str) -> None:
    got = index(tmp_path / "index", "jinja2", "3.1.6", "built = 'here'\n")
    assert "jinja2" in made(tmp_path, tool, "jinja2==3.1.6", {"jinja2==3.1.6": (*shipped()["jinja2==3.1.6"], got)})


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_a_pin_of_which_nothing_is_known_installs(tmp_path: Path, tool: str) -> None:
    index(tmp_path / "index", "nobodys", "1.0", "")
    assert "nobodys" in made(tmp_path, tool, "nobodys==1.0", {})


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_an_index_says_what_packages_come_to(tmp_path: Path, tool: str) -> None:
    outer = index(tmp_path / "index", "outer", "1.0", "", needs="inner")
    inner = index(tmp_path / "index", "inner", "2.0", "")
    here = host(os.environ)
    asked = installer(tmp_path, tool)
    packages = Environment(here.python, here.platform, ("outer>=1",))
    assert asked.ask(packages, here.interpreter) == {"outer==1.0": (outer,), "inner==2.0": (inner,)}
    bare = Environment(here.python, here.platform, (), ("outer==1.0",))
    assert asked.ask(bare, here.interpreter) == {"outer==1.0": (outer,)}
    absent = Environment(here.python, here.platform, ("gone",))
    with pytest.raises(SourceError, match="gone"):
        asked.ask(absent, here.interpreter)


def test_every_pin_of_forge_has_its_hashes() -> None:
    environments = runpy.run_path(str(ROOT / ".ci" / "wheel_hashes.py"))["environments"]()
    pins = {pin: name for name, lines in environments.items() for pin in lines}
    pinned = runpy.run_path(str(ROOT / ".ci" / "wheel_hashes.py"))["pinned"]
    assert {pin for pin in pins if pinned(pin) not in shipped()} == UNKNOWN
    assert shipped().keys() == {pinned(pin) for pin in pins} - UNKNOWN
    assert all(len(digest) == len(sha256().hexdigest()) for digests in shipped().values() for digest in digests)
