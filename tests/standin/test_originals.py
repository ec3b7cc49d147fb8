"""`make originals` brings what is pinned, and what is read out of NVIDIA's sources is what argparse is told there."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import known_flags
import originals

SCRIPT = """
import argparse
KNOWN = {"a": 1}
def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_dir", "--model-dir", type=str, required=True)
    parser.add_argument("--dtype", type=str, default="auto", choices=["auto", "float16"])
    parser.add_argument("--modules", nargs="+", choices=KNOWN.keys())
    parser.add_argument("--off", action="store_true", help="--none of a flag {x,y}")
"""
PLUGINS = """
class PluginConfig:
    _dtype: str = "float16"
    _gemm_plugin: Optional[str] = None
    _context_fmha: bool = True
    hidden: bool = True
cli_plugin_args = ["gemm_plugin", "context_fmha"]
"""


def git(place: Path, *words: str) -> str:
    named = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.run(("git", "-C", str(place), *named, *words), capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def mirror(tmp_path: Path) -> tuple[Path, str]:
    """A repository of somebody's, and the commit before its last."""
    if shutil.which("git") is None:
        pytest.skip("git is not here")
    place = tmp_path / "mirrors" / "acme" / "tools"
    (place / "models" / "ensemble").mkdir(parents=True)
    git(place, "init", "--quiet")
    git(place, "config", "uploadpack.allowAnySHA1InWant", "true")
    (place / "models" / "ensemble" / "config.pbtxt").write_text("old")
    (place / "large.bin").write_text("nobody wants this")
    git(place, "add", ".")
    git(place, "commit", "--quiet", "-m", "one")
    wanted = git(place, "rev-parse", "HEAD")
    (place / "models" / "ensemble" / "config.pbtxt").write_text("new")
    git(place, "commit", "--quiet", "-am", "two")
    return place, wanted


def bring(tmp_path: Path, commit: str, monkeypatch: pytest.MonkeyPatch) -> "subprocess.CompletedProcess[str]":
    pins = tmp_path / "pins.toml"
    pins.write_text(f'[[repository]]\nname = "acme/tools"\npatterns = ["/models/"]\n[repository.commits]\n"1.0" = "{commit}"\n')
    monkeypatch.setenv("FORGE_ORIGINALS", str(tmp_path / "cache"))
    monkeypatch.setenv("FORGE_ORIGINALS_FROM", f"file://{tmp_path}/mirrors/{{owner}}/{{name}}")
    return subprocess.run((sys.executable, originals.__file__, str(pins)), capture_output=True, text=True, check=False)


def test_what_is_pinned_is_brought_and_nothing_else(
    mirror: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, commit = mirror
    assert bring(tmp_path, commit, monkeypatch).returncode == 0
    here = tmp_path / "cache" / "tools" / "1.0"
    assert sorted(str(file.relative_to(here)) for file in here.rglob("*") if file.is_file()) == [
        "COMMIT",
        "models/ensemble/config.pbtxt",
    ]
    assert (here / "models/ensemble/config.pbtxt").read_text() == "old"
    shutil.rmtree(place)
    assert bring(tmp_path, commit, monkeypatch).returncode == 0, "what is here is not asked for again"


def test_what_cannot_be_had_is_named_and_leaves_nothing(
    mirror: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = bring(tmp_path, "0" * 40, monkeypatch)
    assert done.returncode == 1
    assert f"not here: acme/tools 1.0 from file://{tmp_path}/mirrors/acme/tools" in done.stderr
    assert list((tmp_path / "cache" / "tools").iterdir()) == []


def test_flags_are_read_as_the_script_states_them() -> None:
    found = known_flags.flags(ast.parse(SCRIPT))
    assert set(found) == {"--model_dir", "--model-dir", "--dtype", "--modules", "--off"}
    assert found["--dtype"]["choices"] == ["auto", "float16"]
    assert "choices" not in found["--modules"]
    switches = {"--gemm_plugin": {}, "--context_fmha": {"choices": ["enable", "disable"]}}
    assert known_flags.plugins(ast.parse(PLUGINS)) == switches


@pytest.mark.parametrize("tool", ["convert_checkpoint:llama", "quantize", "trtllm-build", "trtllm-build:plugins"])
def test_the_originals_flags_are_found(tool: str) -> None:
    """That the reading finds them at all: some which every version has."""
    always = {
        "convert_checkpoint:llama": {"--model_dir", "--tp_size", "--dtype", "--use_weight_only"},
        "quantize": {"--model_dir", "--qformat", "--calib_size"},
        "trtllm-build": {"--checkpoint_dir", "--max_batch_size", "--max_beam_width"},
        "trtllm-build:plugins": {"--gemm_plugin", "--use_paged_context_fmha"},
    }
    assert always[tool] <= set(known_flags.known(tool))
