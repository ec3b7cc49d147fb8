"""The exact packages of the environments that forge makes for servers, a requirements file each, for who audits them.

``pins.py FOLDER`` gives ``twin.txt``, ``vllm_cpu.txt`` and ``vllm_gpu.txt``. A local version (``+cpu``) is left out:
advisories know none.
"""

import sys
from importlib.resources import files
from pathlib import Path

from forge.schema.twin_environment import PACKAGES, TRITON


def pins() -> dict[str, tuple[str, ...]]:
    """File -> its lines."""
    found = {"twin.txt": (*PACKAGES, TRITON)}
    for name in ("vllm_cpu.txt", "vllm_gpu.txt"):
        text = (files("forge.schema") / name).read_text(encoding="utf-8")
        found[name] = tuple(line.partition("+")[0] for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return found


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in pins().items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
