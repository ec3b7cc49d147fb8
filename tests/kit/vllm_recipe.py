"""A small recipe of the runtime vllm, and what its model.json states."""

import json
from pathlib import Path

RECIPE = """
name = "{name}"
{top}
[source]
hub = "acme/tiny"
[runtime]
kind = "vllm"
{runtime}
[build]
max_batch_size = 4
max_input_len = 100
max_seq_len = 200
"""


def write(folder: Path, more: str = "", *, name: str = "tiny", top: str = "", runtime: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.toml"
    file.write_text(RECIPE.format(name=name, top=top, runtime=runtime) + more)
    return file


def stated(repository: Path, name: str = "tiny") -> dict[str, object]:
    found: dict[str, object] = json.loads((repository / name / "1" / "model.json").read_text())
    return found
