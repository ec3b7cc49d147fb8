"""Private environments, Triton's backend folder, and what a host brings."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from forge.errors import HostError, SourceError
from forge.machine.environments import PrivateEnvironments, backends, host
from forge.machine.libraries import read_layout, require_libraries
from forge.schema.twin_environment import PYTHONS, serving_environment, twin_sources
from forge.schema.values import Environment, Host, TextFile
from triton_fixture import Serving

HERE = Host("3.11", "/usr/bin/python3.11", "linux-x86_64")


def silent(_: str) -> None:
    """Nobody reads the installer's lines."""


def test_the_words_of_an_environment_are_exact_and_complete() -> None:
    environment = serving_environment(HERE, ("transformers==5.0.0", "torch==2.13.0"))
    assert all("==" in package for package in environment.bare)
    assert environment.packages == ("torch==2.13.0", "transformers==5.0.0")
    assert any(package.startswith("nvidia-pytriton==") for package in environment.bare)


def test_an_installed_triton_needs_none_from_the_index() -> None:
    environment = serving_environment(replace(HERE, triton="/opt/tritonserver"))
    assert not any("pytriton" in package for package in environment.bare)


def test_the_twin_is_laid_as_a_backend_with_its_entrance() -> None:
    sources = {text.path: text.content for text in twin_sources()}
    assert "TritonPythonModel" in sources["tensorrtllm/model.py"]
    assert "tensorrtllm/twin/__init__.py" in sources


def test_this_host_names_a_python_that_can_serve_the_twin() -> None:
    found = host(os.environ)
    assert found.python in PYTHONS
    assert Path(found.interpreter).is_file()
    done = subprocess.run((found.interpreter, "--version"), capture_output=True, text=True, check=True)
    assert found.python in done.stdout


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"platform": "macosx-14-arm64"}, "macosx-14-arm64"), ({"python": "3.14"}, "only 3.14 was found")],
)
def test_a_host_that_cannot_serve_the_twin_is_told_why(tmp_path: Path, wrong: dict[str, str], named: str) -> None:
    environment = replace(serving_environment(HERE), **wrong)  # type: ignore[arg-type,unused-ignore]
    with pytest.raises(HostError, match=named) as caught:
        PrivateEnvironments(os.environ).make(environment, sys.executable, tmp_path, silent)
    assert caught.value.hint


@pytest.mark.slow
@pytest.mark.network
def test_an_environment_works_after_a_move_and_read_only(tmp_path: Path) -> None:
    machine = host(os.environ)
    staging, place = tmp_path / "staging", tmp_path / "place"
    staging.mkdir()
    small = Environment(machine.python, machine.platform, ("six==1.17.0",), ("jinja2==3.1.6", "markupsafe==3.0.4"))
    lines: list[str] = []
    PrivateEnvironments({**os.environ, "PIP_USER": "1"}).make(small, machine.interpreter, staging, lines.append)
    staging.rename(place)
    for path in (place, *place.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    code = "import jinja2, six, sys; print(jinja2.__file__, sys.prefix, jinja2.__cached__)"
    done = subprocess.run((place / "bin" / "python3", "-c", code), capture_output=True, text=True, check=True)
    module, prefix, cached = done.stdout.split()
    assert module.startswith(str(place))
    assert prefix == str(place)
    assert Path(cached).is_file()
    assert [program.name for program in (place / "bin").iterdir()] == ["python3"]
    assert any("six" in line for line in lines)
    held = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in held if str(staging).encode() in path.read_bytes()] == []
    for path in (place, *place.rglob("*")):  # so that pytest can clear it away
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


@pytest.mark.network
def test_a_missing_version_is_told_in_the_installers_words(tmp_path: Path) -> None:
    machine = host(os.environ)
    absent = Environment(machine.python, machine.platform, (), ("markupsafe==99.9",))
    with pytest.raises(SourceError, match="markupsafe") as caught:
        PrivateEnvironments(os.environ).make(absent, machine.interpreter, tmp_path, silent)
    assert "runtime.packages" in caught.value.hint


@pytest.mark.slow
@pytest.mark.network
def test_a_backend_folder_holds_copies_and_an_executable_stub(serving: Serving, tmp_path: Path) -> None:
    backends(serving.environment, "", tmp_path, (TextFile("tensorrtllm/model.py", "x = 1\n"),))
    laid = {path.name: path for path in (tmp_path / "python").iterdir() if path.is_file()}
    assert set(laid) == {"libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub"}
    assert not any(path.is_symlink() for path in laid.values())
    assert laid["triton_python_backend_stub"].stat().st_mode & stat.S_IXUSR
    assert (tmp_path / "tensorrtllm" / "model.py").read_text() == "x = 1\n"


@pytest.mark.slow
@pytest.mark.network
def test_missing_libraries_are_found_before_a_server_hangs(serving: Serving) -> None:
    layout = read_layout(serving.environment)
    require_libraries(layout.server_programs(), layout.library_path())
    moved = serving.home / "tritonserver"
    moved.write_bytes(layout.server.read_bytes())  # its libraries are found relative to where it was
    with pytest.raises(HostError, match=r"libraries are missing: .*for tritonserver"):
        require_libraries((moved,), "")


def test_an_environment_whose_python_is_gone_is_explained(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(tmp_path / "gone" / "python3")
    (tmp_path / "pyvenv.cfg").write_text("home = /gone/bin\nversion = 3.11.7\n", encoding="utf-8")
    with pytest.raises(HostError, match="is gone from /gone/bin"):
        read_layout(tmp_path)
