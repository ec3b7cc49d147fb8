"""Which engine's config.json a verification goes by, where a model has several."""

import json
from pathlib import Path

import pytest

from forge.schema.manifest import PublishedModel
from forge.schema.values import Role, RuntimeKind
from forge.serve.lookup import Target
from forge.verify.limits import computed_in, engine_folder
from forge.verify.tolerances import tolerance


@pytest.mark.parametrize(("main", "other"), [("decoder", "encoder"), ("target", "draft")])
def test_the_engine_that_answers_says_what_is_allowed(tmp_path: Path, main: str, other: str) -> None:
    model = PublishedModel(name="m", entry="k", runtime=RuntimeKind.ENGINE, roles={Role.TENSORRT_LLM: "m-tensorrt_llm"})
    engines = tmp_path / model.asset("engines")
    for name, dtype in ((main, "float32"), (other, "float16")):
        (engines / name).mkdir(parents=True)
        (engines / name / "config.json").write_text(json.dumps({"pretrained_config": {"dtype": dtype}}))
    (tmp_path / "m-tensorrt_llm").mkdir()
    config = tmp_path / "m-tensorrt_llm" / "config.pbtxt"
    config.write_text(f'parameters {{ key: "gpt_model_path" value {{ string_value: "/models/_assets/m/engines/{main}" }} }}')
    found = engine_folder(Target("localhost:1", model, tmp_path))
    assert found == engines / main
    assert tolerance(json.loads((found / "config.json").read_text())).name == "float32"


@pytest.mark.parametrize(("weights", "name"), [("", "float32"), ("bfloat16", "bfloat16"), ("int8", "int8 weights")])
def test_a_twin_computes_in_float32_on_its_recipes_weights(tmp_path: Path, weights: str, name: str) -> None:
    model = PublishedModel(name="m", entry="k", runtime=RuntimeKind.TWIN, roles={Role.TENSORRT_LLM: "tensorrt_llm"})
    folder = tmp_path / model.asset("engines")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"dtype": "float16"}))
    (folder / "build_config.json").write_text(json.dumps({"max_seq_len": 9, **({"weights": weights} if weights else {})}))
    assert computed_in(Target("localhost:1", model, tmp_path)).name == name


def test_a_single_engine_lies_where_engines_do(tmp_path: Path) -> None:
    model = PublishedModel(name="m", entry="k", runtime=RuntimeKind.ENGINE, roles={Role.TENSORRT_LLM: "tensorrt_llm"})
    assert engine_folder(Target("localhost:1", model, tmp_path)) == tmp_path / model.asset("engines")
