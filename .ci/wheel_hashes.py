"""Writes core/forge/schema/wheels.sha256: the sha256 of each wheel that PyPI has for an exact pin of forge's environments, for
Python 3.11 and 3.12 on Linux with glibc, x86-64 and Arm. Asks PyPI through uv; run it again after a pin has moved.

A local version (``+cpu``) is on no PyPI and is left out.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from forge.bench.aiconfigurator import known
from forge.bench.aiperf import records
from forge.schema.twin_environment import PACKAGES, PYTHONS, TRITON
from forge.schema.wheels import FILE, pinned

_ALL = {
    (tag.interpreter, tag.abi)
    for minor in (int(python.partition(".")[2]) for python in PYTHONS)
    for tag in (*cpython_tags((3, minor), platforms=["linux"]), *compatible_tags((3, minor), f"cp3{minor}", ["linux"]))
}
_PLATFORM = re.compile(r"any|(manylinux|linux)\w*_(x86_64|aarch64)")


def environments() -> dict[str, tuple[str, ...]]:
    """Every environment whose pins are exact, by name."""
    vllm = {
        name: tuple((files("forge.schema") / f"{name}.txt").read_text("utf-8").split()) for name in ("vllm_cpu", "vllm_gpu")
    }
    return {"twin": (*PACKAGES, TRITON), **vllm, "aiperf": records.pins(), "aiconfigurator": known.pins()}


def main() -> None:
    found: dict[str, set[str]] = {}
    for pins in environments().values():
        for pin, digest in _asked(pins):
            found.setdefault(pin, set()).add(digest)
    lines = (f"{pin} {' '.join(sorted(digests))}\n" for pin, digests in sorted(found.items()))
    Path(str(files("forge.schema") / FILE)).write_text("".join(lines), encoding="utf-8")


def _asked(pins: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch, "pins.in"), Path(scratch, "pylock.toml")
        asked.write_text("\n".join(pin for pin in pins if "+" not in pin), encoding="utf-8")
        index = ("--no-config", "--default-index", "https://pypi.org/simple", "--no-deps", "--universal")
        form = ("--python-version", min(PYTHONS), "--format", "pylock.toml", "-o", str(answer), str(asked))
        subprocess.run((sys.argv[1] if sys.argv[1:] else "uv", "pip", "compile", "-q", *index, *form), check=True)
        for package in tomllib.loads(answer.read_text(encoding="utf-8"))["packages"]:
            for wheel in package.get("wheels", ()):
                if _serves(wheel["url"].rpartition("/")[2]):
                    yield pinned(f"{package['name']}=={package['version']}"), wheel["hashes"]["sha256"]


def _serves(name: str) -> bool:
    tags = parse_wheel_filename(name.replace("%2B", "+"))[3]
    return any((tag.interpreter, tag.abi) in _ALL and _PLATFORM.fullmatch(tag.platform) for tag in tags)


if __name__ == "__main__":
    main()
