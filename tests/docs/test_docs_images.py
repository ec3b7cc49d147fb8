"""docs/images.md lists the images and cards that forge knows, as its tables have them.

FORGE_REWRITE_DOCS=1 writes it anew: `FORGE_REWRITE_DOCS=1 pytest tests/docs/test_docs_images.py`, then read the diff.
"""

import os
from pathlib import Path

from forge.fit.gpus import table
from forge.schema.values import MIB
from forge.schema.vllm_images import vllm_releases
from forge.trtllm.image_table import releases

PAGE = Path(__file__).parents[2] / "docs" / "images.md"
HEAD = """# Images and cards that forge knows

`[runtime] image` takes a tag of this table for `nvcr.io/nvidia/tritonserver:TAG-trtllm-python-py3`. A whole reference or a
digest is taken as it is, and asked for its version. The figures are package data: `core/forge/trtllm/images.toml` and
`core/forge/fit/gpus.toml` say where they are from.

A site that reaches no nvcr.io says once where its copy is, in [config.toml](config.md): `mirror = "harbor.example.com/nvcr"`
under `[images]` has the image 25.08 pulled from `harbor.example.com/nvcr/nvidia/tritonserver:25.08-trtllm-python-py3`, and
named as ever in plans, keys and Docker. An image that a recipe names by its digest comes from its own registry. Without any
registry: [bundle.md](bundle.md).

`forge toolchain 25.08` lists the conversion scripts of an image that is here, as a plugin names them; `forge toolchain 25.08
gemma` the flags of one, with what each takes, its default and its meaning: its own `--help`, asked in the image (its source,
where it says nothing without a GPU). `local` is the container that forge runs in.

| image | TensorRT-LLM | CUDA | least driver | runtimes |
|---|---|---|---|---|
"""
VLLM = """
With `runtime.kind = "vllm"` and `executor = "docker"` ([vLLM](vllm.md)) it takes one of these, for
`nvcr.io/nvidia/tritonserver:TAG-vllm-python-py3`; their figures are in `core/forge/schema/vllm_images.toml`.

| image | vLLM | CUDA | least driver |
|---|---|---|---|
"""
_BARE = "none: it has no /app"
CARDS = """
`forge fit --gpu NAME` takes these cards, by these words or by nvidia-smi's:

| card | memory (MiB) | compute capability |
|---|---|---|
"""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def written() -> str:
    images = [_row(each.tag, each.trtllm, each.cuda or "-", each.driver, ", ".join(each.kinds) or _BARE) for each in releases()]
    vllm = [_row(each.tag, each.vllm, each.cuda, each.driver) for each in vllm_releases()]
    cards = [_row(gpu.name, str(gpu.memory // MIB), gpu.capability) for gpu in table()]
    return "".join((HEAD, *images, VLLM, *vllm, CARDS, *cards))


def test_the_page_has_every_image_and_card() -> None:
    if os.environ.get("FORGE_REWRITE_DOCS"):
        PAGE.write_text(written(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == written()
