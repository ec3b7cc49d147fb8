"""Repositories with models of vLLM, as the plan lays them out."""

import json
from pathlib import Path

from forge.repository.config import render
from forge.repository.vllm import vllm_skeleton
from forge.schema.values import Names, Role


def lay(root: Path, name: str, *, gpus: object = "", **arguments: object) -> None:
    """One model of a repository, as the plan lays it out with its assets inside; ``arguments`` go into its model.json."""
    checkpoint = root / name / "_assets" / "model"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512}')
    for text in render(Names(name, (Role.VLLM,)), vllm_skeleton(gpus=str(gpus)), {Role.VLLM: {}}):
        (root / text.path).parent.mkdir(parents=True, exist_ok=True)
        (root / text.path).write_text(text.content)
    (root / name / "1").mkdir()
    stated = {"model": "./_assets/model", "max_model_len": 256, **arguments}
    (root / name / "1" / "model.json").write_text(json.dumps(stated))
