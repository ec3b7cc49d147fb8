"""NVIDIA's own scripts and skeletons at pinned commits: `make originals` brings them, tests read them from here.

They lie in FORGE_ORIGINALS (~/.cache/forge/originals) as REPOSITORY/VERSION. FORGE_ORIGINALS_FROM is where git finds the
repositories, if not at GitHub: an address with {owner} and {name} in it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PINS = Path(__file__).with_name("originals.toml")
GITHUB = "https://github.com/{owner}/{name}.git"
MISSING = "NVIDIA's originals are not here: `make originals` brings them"
ROLES = ("ensemble", "postprocessing", "preprocessing", "tensorrt_llm", "tensorrt_llm_bls")
_SHARED = Path(__file__).parents[3] / "shared" / "data"
"""Where a few of them lie beside some checkouts; there are fewer files and fewer versions."""


@dataclass(frozen=True)
class Original:
    """One repository at one commit, of which the files that ``patterns`` name (as in .gitignore) are wanted."""

    repository: str
    version: str
    commit: str
    patterns: tuple[str, ...]

    @property
    def folder(self) -> str:
        return f"{self.repository.partition('/')[2]}/{self.version}"


def wanted(pins: Path = PINS) -> Iterator[Original]:
    for each in tomllib.loads(pins.read_text(encoding="utf-8"))["repository"]:
        for version, commit in each["commits"].items():
            yield Original(each["name"], version, commit, tuple(each["patterns"]))


def cache() -> Path:
    stated = os.environ.get("FORGE_ORIGINALS")
    return Path(stated) if stated else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forge" / "originals"


def bring(one: Original, into: Path) -> str:
    """Lay one there, whole or not at all; what was in the way, empty where nothing was."""
    place, note = into / one.folder, into / one.folder / "COMMIT"
    if note.is_file() and note.read_text(encoding="ascii") == one.commit:
        return ""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as scratch:
        tree = Path(scratch) / "tree"
        owner, name = one.repository.split("/")
        address = os.environ.get("FORGE_ORIGINALS_FROM", GITHUB).format(owner=owner, name=name)
        for words in (
            ("init", "--quiet", str(tree)),
            ("-C", str(tree), "remote", "add", "origin", address),
            ("-C", str(tree), "sparse-checkout", "set", "--no-cone", *one.patterns),
            ("-C", str(tree), "fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", one.commit),
            ("-C", str(tree), "checkout", "--quiet", "FETCH_HEAD"),
        ):
            done = subprocess.run(("git", *words), capture_output=True, text=True, env=_environ(), check=False)
            if done.returncode:
                return f"{one.repository} {one.version} from {address}: {done.stderr.strip()}"
        shutil.rmtree(tree / ".git")
        (tree / "COMMIT").write_text(one.commit, encoding="ascii")
        shutil.rmtree(place, ignore_errors=True)
        tree.rename(place)
    return ""


def _environ() -> dict[str, str]:
    """Git asks nobody for a password, and none of the person's own settings change what is laid."""
    return {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_LFS_SKIP_SMUDGE": "1"}


def skeletons(version: str) -> Path | None:
    """NVIDIA's model repository of a version, a folder for each role; None where it is not here."""
    places = (
        cache() / "TensorRT-LLM" / version / "triton_backend" / "all_models" / "inflight_batcher_llm",
        cache() / "tensorrtllm_backend" / version / "all_models" / "inflight_batcher_llm",
        _SHARED / "skeletons" / version,
    )
    return next((place for place in places if all((place / role / "config.pbtxt").is_file() for role in ROLES)), None)


def programs(version: str) -> Path | None:
    """The same with the programs in it: beside some checkouts lie a version's configs alone."""
    place = skeletons(version)
    return place if place and (place / "postprocessing" / "1" / "model.py").is_file() else None


def versions(least: str = "0") -> list[str]:
    """Those whose skeletons are here, from ``least`` on, oldest first."""
    stated = {one.version for one in wanted()} | {place.name for place in (_SHARED / "skeletons").glob("*.*")}
    here = [each for each in stated if skeletons(each)]
    return sorted((each for each in here if _number(each) >= _number(least)), key=_number)


def llmapi() -> Path | None:
    """The newest config.pbtxt of the PyTorch path's model that is here."""
    places = [cache() / "TensorRT-LLM" / one.version / "triton_backend/all_models/llmapi/tensorrt_llm" for one in wanted()]
    files = [place / "config.pbtxt" for place in (_SHARED / "skeletons" / "llmapi" / "llmapi_tensorrt_llm", *places)]
    return next((file for file in reversed(files) if file.is_file()), None)


def configs() -> list[Path]:
    """Every config.pbtxt of a version's skeletons."""
    places = [skeletons(version) for version in versions()]
    return sorted(file for place in places if place for file in place.glob("*/config.pbtxt"))


def title(config: Path) -> str:
    """A config's version and role, for a test's name."""
    version = next(part for part in reversed(config.parts) if part[0].isdigit() and part != "1")
    return f"{version}-{config.parent.name}"


def source(version: str, path: str) -> Path | None:
    """A file of TensorRT-LLM's own repository."""
    file = cache() / "TensorRT-LLM" / version / path
    return file if file.is_file() else None


def vllm_backend() -> Path | None:
    """The newest of Triton's vLLM backends that is here, as it lies in an image: model.py and what it imports."""
    places = [cache() / one.folder / "src" for one in wanted() if one.repository.endswith("/vllm_backend")]
    return next((place for place in reversed(places) if (place / "model.py").is_file()), None)


def kserve(plural: str) -> Path | None:
    """KServe's own definition of a resource, of the newest version that is here."""
    places = [cache() / one.folder / "config/crd/full" for one in wanted() if one.repository == "kserve/kserve"]
    files = [place / f"serving.kserve.io_{plural}.yaml" for place in places]
    return next((file for file in reversed(files) if file.is_file()), None)


def table_of_flags() -> Path | None:
    """A list of NVIDIA's flags that was made by hand for 0.21, beside some checkouts."""
    file = _SHARED / "flags-0.21.json"
    return file if file.is_file() else None


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def main() -> int:
    pins = Path(sys.argv[1]) if len(sys.argv) > 1 else PINS
    problems = [problem for one in wanted(pins) if (problem := bring(one, cache()))]
    sys.stderr.write("".join(f"not here: {problem}\n" for problem in problems))
    sys.stdout.write(f"NVIDIA's originals: {cache()}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
