"""tensorrt_llm_bls under a prefix: NVIDIA's code is probed, left as it is, and told its siblings by a subclass."""

import ast
import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from forge import protobuf
from forge.errors import RepositoryError
from forge.repository import bls as siblings, config as repository
from forge.schema.values import Names, Role, TextFile
from nvidias_bls import CONFIG, DECODER, MODEL, bls


def rendered(prefix: str, *, draft: bool = False, model: str = MODEL) -> dict[str, str]:
    """A repository of NVIDIA's bls and nothing else, as it would be laid."""
    roles = (Role.BLS, Role.TENSORRT_LLM, Role.PREPROCESSING, Role.POSTPROCESSING, *((Role.DRAFT,) if draft else ()))
    files = (*bls(model), *(siblings.beside(bls(model)) if prefix else ()))
    skeletons = (
        TextFile("tensorrt_llm_bls/config.pbtxt", CONFIG),
        *(TextFile(f"{Role.BLS}/{f.path}", f.content) for f in files),
    )
    return {text.path: text.content for text in repository.render(Names(prefix, roles), skeletons, {})}


def parameters(config: str) -> dict[str, str]:

    message: Any = protobuf.parse(config)
    stated = {key: value.string_value for key, value in message.parameters.items()}
    return stated | {"file": message.default_model_filename, "name": message.name}


def test_a_prefix_keeps_nvidias_file_beside_a_subclass() -> None:
    laid = rendered("x")
    assert laid["x-tensorrt_llm_bls/1/model.py"] == MODEL
    assert laid["x-tensorrt_llm_bls/1/lib/triton_decoder.py"] == DECODER
    stated = parameters(laid["x-tensorrt_llm_bls/config.pbtxt"])
    assert stated["file"] == "forge_bls.py"
    assert stated["name"] == "x-tensorrt_llm_bls"
    assert stated["tensorrt_llm_model_name"] == "x-tensorrt_llm"
    assert stated["preprocessing_model_name"] == "x-preprocessing"
    assert stated["postprocessing_model_name"] == "x-postprocessing"
    assert "tensorrt_llm_draft_model_name" not in stated


def test_a_draft_is_told_to_bls_by_its_parameter() -> None:
    assert parameters(rendered("x", draft=True)["x-tensorrt_llm_bls/config.pbtxt"])["tensorrt_llm_draft_model_name"] == (
        "x-tensorrt_llm_draft"
    )


def test_with_plain_names_nvidias_model_is_loaded_itself() -> None:
    laid = rendered("")
    assert "tensorrt_llm_bls/1/forge_bls.py" not in laid
    assert not parameters(laid["tensorrt_llm_bls/config.pbtxt"])["file"]


def test_forges_own_bls_needs_nobody_beside_it() -> None:
    own = [
        TextFile(text.path.removeprefix("tensorrt_llm_bls/"), text.content)
        for text in repository.skeletons()
        if text.path.startswith("tensorrt_llm_bls/")
    ]
    assert siblings.beside(own) == ()
    assert list(siblings.problems(own, draft=True)) == []


def test_the_manifests_edits_name_both_files_and_why() -> None:
    skeletons = tuple(TextFile(f"{Role.BLS}/{text.path}", text.content) for text in (*bls(), *siblings.beside(bls())))
    edits = siblings.edits(Names("x"), skeletons)
    assert [edit.file for edit in edits] == ["x-tensorrt_llm_bls/1/forge_bls.py", "x-tensorrt_llm_bls/config.pbtxt"]
    assert all("literals" in edit.why for edit in edits)
    assert siblings.edits(Names(""), tuple(TextFile(f"{Role.BLS}/{text.path}", text.content) for text in bls())) == ()


def test_nvidias_code_as_it_is_known_is_accepted() -> None:
    assert list(siblings.problems(bls(), draft=True)) == []


@pytest.mark.parametrize(
    ("path", "before", "after", "expected"),
    [
        ("1/model.py", "self.decoder = TritonDecoder", "self.coder = TritonDecoder", "sets self.decoder"),
        ("1/model.py", "class TritonPythonModel", "class Another", "sets self.decoder"),
        ("1/model.py", 'preproc_model_name="pre', 'pre="pre', "the argument preproc_model_name of TritonDecoder"),
        ("1/model.py", '"tensorrt_llm_model_name"', '"llm"', "tensorrt_llm_model_name is read"),
        ("1/model.py", '"tensorrt_llm_draft_model_name"', '"draft"', "tensorrt_llm_draft_model_name is read"),
        ("1/lib/triton_decoder.py", "=self.preproc_model_name", "=self._names[0]", "reads self.preproc_model_name"),
        ("1/lib/triton_decoder.py", "model_name=self.postproc_model_name", 'model_name="postprocessing"', "by a literal"),
        ("1/model.py", "import json", "import json json", "Python that the interpreter"),
    ],
)  # fmt: skip
def test_a_future_versions_difference_is_named_with_the_way_out(path: str, before: str, after: str, expected: str) -> None:
    changed = [TextFile(text.path, text.content.replace(before, after)) if text.path == path else text for text in bls()]
    assert changed != list(bls())
    found = list(siblings.problems(changed, draft=True))
    assert any(expected in problem.what and problem.where == f"tensorrt_llm_bls/{path}" for problem in found), found
    assert all("--repository" in problem.hint for problem in found)


def test_a_bls_without_code_is_named() -> None:
    (found,) = siblings.problems([TextFile("1/lib/decode.py", "")])
    assert found.where == "tensorrt_llm_bls/1/model.py"


def test_code_that_is_no_python_is_never_laid() -> None:
    with pytest.raises(RepositoryError, match="is no Python") as caught:
        siblings.compiled("x-tensorrt_llm_bls/1/forge_bls.py", "class")
    assert caught.value.where == "x-tensorrt_llm_bls/1/forge_bls.py"


def test_what_forge_writes_is_python() -> None:
    (text,) = siblings.beside(bls())
    siblings.compiled(text.path, text.content)
    (own,) = (node for node in ast.parse(text.content).body if isinstance(node, ast.ClassDef))
    assert own.name == "TritonPythonModel"


@contextmanager
def loaded(folder: Path) -> Generator[Any]:
    """forge_bls.py as Triton's stub loads it: the version folder on the path, triton_python_backend_utils a module."""
    door = ModuleType("triton_python_backend_utils")
    door.__dict__.update(using_decoupled_model_transaction_policy=bool, Logger=None)
    before = set(sys.modules)
    sys.modules["triton_python_backend_utils"] = door
    sys.path.insert(0, str(folder))
    try:
        yield __import__("forge_bls")
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:  # others of that name come from other folders; numpy can be loaded only once
            if name.partition(".")[0] in ("forge_bls", "model", "lib", "triton_python_backend_utils"):
                del sys.modules[name]


def initialized(folder: Path) -> Any:
    stated = {
        "tensorrt_llm_model_name": "x-tensorrt_llm",
        "tensorrt_llm_draft_model_name": "x-tensorrt_llm_draft",
        "preprocessing_model_name": "x-preprocessing",
        "postprocessing_model_name": "x-postprocessing",
        "accumulate_tokens": "false",
    }
    config = {"parameters": {key: {"string_value": value} for key, value in stated.items()}}
    with loaded(folder) as module:
        model = module.TritonPythonModel()
        model.initialize({"model_config": json.dumps(config)})
    return model.decoder


def check(decoder: Any) -> None:
    assert decoder.preproc_model_name == "x-preprocessing"
    assert decoder.postproc_model_name == "x-postprocessing"
    assert decoder.llm_model_name == "x-tensorrt_llm"
    assert decoder.draft_llm_model_name == "x-tensorrt_llm_draft"


def test_the_subclass_gives_the_decoder_the_names_of_the_config(tmp_path: Path) -> None:
    repository_files = (*bls(), *siblings.beside(bls()))
    for text in repository_files:
        target = tmp_path / text.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.content)
    check(initialized(tmp_path / "1"))


def test_the_subclass_ships_with_forge() -> None:
    assert (resources.files("forge.repository.skeletons") / siblings.FILE).is_file()
