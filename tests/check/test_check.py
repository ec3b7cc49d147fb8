"""``forge check``: what it says and in which form, what it fixes, and what it finds in repositories that people filled."""

import errno
import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result
from filelock import Timeout

import check_kit as kit
import originals
from breaking import ASSETS, BREAKS, CONFIG
from forge.check import repository_reader
from forge.check.check import Checker
from forge.check.rules import all_rules
from forge.cli import main
from forge.errors import RepositoryError
from forge.repository import config, publish
from forge.schema.values import COMMON_ROLES, Gpu, RuntimeKind, TextFile
from forge.store.artifact import Provenance
from forge.store.store import Store

VERSIONS = originals.versions("0.19.0")
SARIF: Mapping[str, Any] = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name", "rules"],
                                "properties": {
                                    "rules": {
                                        "type": "array",
                                        "items": {
                                            "type": "object",
                                            "required": ["id", "shortDescription"],
                                            "properties": {"shortDescription": {"required": ["text"]}},
                                        },
                                    }
                                },
                            }
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["ruleId", "level", "message", "locations"],
                            "properties": {
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "message": {"type": "object", "required": ["text"]},
                                "locations": {
                                    "type": "array",
                                    "items": {
                                        "required": ["physicalLocation"],
                                        "properties": {
                                            "physicalLocation": {
                                                "required": ["artifactLocation"],
                                                "properties": {
                                                    "artifactLocation": {"required": ["uri"]},
                                                    "region": {"properties": {"startLine": {"type": "integer", "minimum": 1}}},
                                                },
                                            }
                                        },
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""What SARIF 2.1.0 requires of the parts that forge writes."""
FILLED: dict[str, Mapping[str, str]] = {
    "preprocessing": {
        "tokenizer_dir": "/repo/tokenizer",
        "triton_max_batch_size": "8",
        "preprocessing_instance_count": "1",
        "max_queue_delay_microseconds": "0",
        "max_queue_size": "0",
    },
    "postprocessing": {"tokenizer_dir": "/repo/tokenizer", "triton_max_batch_size": "8", "postprocessing_instance_count": "1"},
    "tensorrt_llm_bls": {
        "triton_max_batch_size": "8",
        "decoupled_mode": "true",
        "bls_instance_count": "1",
        "accumulate_tokens": "false",
        "logits_datatype": "TYPE_FP32",
        "prompt_embedding_table_data_type": "TYPE_FP16",
    },
    "ensemble": {
        "triton_max_batch_size": "8",
        "logits_datatype": "TYPE_FP32",
        "prompt_embedding_table_data_type": "TYPE_FP16",
    },
    "tensorrt_llm": {
        "triton_backend": "tensorrtllm",
        "triton_max_batch_size": "8",
        "decoupled_mode": "true",
        "max_queue_delay_microseconds": "0",
        "max_queue_size": "0",
        "engine_dir": "/repo/engines",
        "batching_strategy": "inflight_fused_batching",
        "logits_datatype": "TYPE_FP32",
        "encoder_input_features_data_type": "TYPE_FP16",
        "prompt_embedding_table_data_type": "TYPE_FP16",
    },
}
"""What the usual notes fill, with tools/fill_template.py."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return kit.lay(tmp_path / "repository")


def check(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["check", *(str(word) for word in words)])


def broken(root: Path, how: str) -> None:
    """Break ``root`` in a way of test_rules."""
    next(change for rule, told, change in BREAKS if f"{rule}: {told}" == how)(root)


# -- what it says


def test_a_repository_in_order_is_said_to_be(root: Path) -> None:
    done = check(root)
    assert (done.exit_code, done.stdout) == (0, "nothing is wrong\n")


def test_an_error_shows_file_line_rule_and_fix_exit_8(root: Path) -> None:
    broken(root, "name: a copied folder")
    done = check(root)
    assert done.exit_code == RepositoryError.exit_code == 8
    assert "error    postprocessing/config.pbtxt:1: the model is named 'post' and its folder 'postprocessing'" in done.stdout
    assert "-> set name to the folder's, or leave it out [name]" in done.stdout
    assert done.stdout.endswith("1 error\n")


def test_warnings_alone_exit_with_0(root: Path) -> None:
    broken(root, "tokenizer-type: as notes have it")
    done = check(root)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "1 warning")


def test_the_answer_as_json_is_one_document(root: Path) -> None:
    broken(root, "ensemble-model: renamed")
    done = check(root, "--json")
    answer = json.loads(done.stdout)
    assert done.exit_code == 8
    assert answer["counts"] == {"error": 1, "warning": 0, "remark": 0}
    (told,) = answer["findings"]
    assert (told["rule"], told["severity"], told["file"]) == ("ensemble-model", "error", "ensemble/config.pbtxt")
    assert told["line"] > 1
    assert "preprocessing" in told["fix"]


@pytest.mark.parametrize(("content", "words"), [(False, "no such folder"), (True, "no model repository")])
def test_what_is_no_repository_is_refused(tmp_path: Path, content: bool, words: str) -> None:
    place = tmp_path / "empty"
    if content:
        (place / "models").mkdir(parents=True)
    done = check(place)
    assert done.exit_code == 8
    assert words in done.stderr


@pytest.mark.parametrize("how", ["name: a copied folder", "tokenizer-type: as notes have it", "lfs-pointer: an engine"])
def test_sarif_is_what_its_schema_wants(root: Path, tmp_path: Path, how: str) -> None:
    broken(root, how)
    check(root, "--sarif", tmp_path / "out.sarif")
    text = (tmp_path / "out.sarif").read_text()
    document = json.loads(text)
    jsonschema.validate(document, SARIF)
    (run,) = document["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [rule.id for rule in all_rules()]
    (result,) = run["results"]
    assert all_rules()[int(result["ruleIndex"])].id == result["ruleId"] == how.partition(":")[0]
    place = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert (root / place["uri"]).exists()
    assert run["originalUriBaseIds"][place["uriBaseId"]]["uri"] == f"{root.as_uri()}/"


def test_sarif_to_stdout_stands_there_alone(root: Path) -> None:
    done = check(root, "--sarif", "-")
    assert json.loads(done.stdout)["runs"][0]["results"] == []


def test_a_person_can_name_the_image_that_serves(root: Path) -> None:
    assert check(root, "--image", "25.06").exit_code == 0
    done = check(root, "--image", "25.08")
    assert done.exit_code == 8
    assert "TensorRT-LLM 0.20.0, and image 25.08, which serves it, holds 0.21.0" in done.stdout
    assert "serve it with image 25.06 or 25.07" in done.stdout


# -- what the store and the machine know


@dataclass(frozen=True)
class Card:
    """A machine with one GPU, as far as a check asks."""

    capability: str

    def gpus(self) -> tuple[Gpu, ...]:
        return (Gpu("a card", 24 << 30, self.capability),)

    def restricts(self, triton: str) -> bool:
        return True


def test_the_store_remembers_what_an_engine_was_built_for(root: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store", clock=lambda: 0.0)
    engine, image = "a" * 64, "i" * 64
    reference = "nvcr.io/nvidia/tritonserver:25.08-trtllm-python-py3"

    def image_json(out: Path) -> None:
        (out / "image.json").write_text(json.dumps({"id": "sha256:1", "base": "b", "reference": reference}))

    store.make(engine, Provenance("tiny: engine", "Run", {"gpu": "sm_89"}, {}), lambda out: (out / "x").write_text("x"))
    store.make(image, Provenance("image", "MakeImage", {}, {}), image_json)
    kit.replace(root, "forge.json", '"keys": \\{', f'"keys": {{"tiny: engine": "{engine}"')
    kit.document(root, CONFIG, version="0.21.0")
    assert Checker(store, Card("8.9")).check(root).findings == ()
    (told,) = Checker(store, Card("9.0")).check(root).findings
    assert told.rule == "engine-gpu"
    kit.document(root, CONFIG, version="0.20.0")
    (told,) = Checker(store, Card("8.9")).check(root).findings
    assert told.rule == "engine-image"


def test_a_change_during_a_look_is_looked_at_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool] = []
    looked = repository_reader.read

    def read(place: Path, *rest: Any) -> Any:
        lock = publish._lock(place)  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(Timeout) if looks else nullcontext(), lock.acquire(timeout=0):
            pass
        looks.append(True)
        if len(looks) == 1:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place / "a model that was removed"))
        return looked(place, *rest)

    monkeypatch.setattr(repository_reader, "read", read)
    assert Checker(Store(tmp_path / "store", clock=lambda: 0.0), Card("8.9")).check(root).findings == ()
    assert len(looks) == 2


# -- what it fixes


FIXED = (
    "name: a copied folder",
    "version-folder: what git does not keep",
    "placeholder-unset: of the engine",
    "placeholder-unset: of bls",
    "parameter-missing: what NVIDIA's code wants there",
    "tokenizer-type: as notes have it",
    "decoupled-pair: bls alone",
    "instances: two",
)


@pytest.mark.parametrize("how", FIXED)
def test_what_is_safe_to_fix_is_fixed_and_said(root: Path, how: str) -> None:
    broken(root, how)
    done = check(root, "--fix")
    assert done.exit_code == 0
    assert done.stdout.startswith("fixed    ")
    assert done.stdout.endswith("nothing is wrong\n")
    assert check(root, "--fix").stdout == "nothing is wrong\n"


def test_every_fixable_rule_is_among_them() -> None:
    assert {how.partition(":")[0] for how in FIXED} | {"placeholder"} == {rule.id for rule in all_rules() if rule.fixable}


def test_a_placeholder_with_a_known_default_is_filled(root: Path) -> None:
    broken(root, "tokenizer-type: as notes have it")
    kit.replace(
        root,
        "preprocessing/config.pbtxt",
        "default_queue_policy {[^}]*}",
        "default_queue_policy { max_queue_size: ${max_queue_size} }",
    )
    assert check(root).exit_code == 8
    assert "preprocessing/config.pbtxt: filled max_queue_size with the default" in check(root, "--fix").stdout
    assert kit.config(root, "preprocessing").parameters["tokenizer_dir"].string_value.endswith("tokenizer")


def test_a_placeholder_that_only_a_person_can_fill_stays(root: Path) -> None:
    broken(root, "placeholder: where a number stands")
    before = (root / "postprocessing/config.pbtxt").read_text()
    assert check(root, "--fix").exit_code == 8
    assert (root / "postprocessing/config.pbtxt").read_text() == before


def test_comments_go_only_where_something_is_fixed(root: Path) -> None:
    for folder in ("ensemble", "postprocessing"):
        file = root / folder / "config.pbtxt"
        file.write_text("# by hand\n" + file.read_text())
    broken(root, "name: a copied folder")
    check(root)
    assert (root / "postprocessing/config.pbtxt").read_text().startswith("# by hand")
    check(root, "--fix")
    assert not (root / "postprocessing/config.pbtxt").read_text().startswith("# by hand")
    assert (root / "ensemble/config.pbtxt").read_text().startswith("# by hand")


def test_a_file_sharing_its_blocks_is_not_written_through(root: Path, tmp_path: Path) -> None:
    broken(root, "name: a copied folder")
    kept, weights = tmp_path / "kept.pbtxt", root / ASSETS / "engines/rank0.engine"
    os.link(root / "postprocessing/config.pbtxt", kept)
    before, status = kept.read_text(), weights.stat()
    check(root, "--fix")
    assert kept.read_text() == before
    assert (root / "postprocessing/config.pbtxt").read_text() != before
    assert weights.stat() == status


# -- what people fill by hand


def filled(place: Path, version: str, **changes: Mapping[str, str]) -> Path:
    """A repository as the notes make it: a skeleton of NVIDIA's, filled text by text, tokenizer and engine beside it."""
    nvidia = originals.skeletons(version)
    assert nvidia
    files = [TextFile(f"{role}/config.pbtxt", (nvidia / role / "config.pbtxt").read_text()) for role in COMMON_ROLES]
    files += [TextFile(f"{role}/1/model.py", "") for role in ("preprocessing", "postprocessing", "tensorrt_llm_bls")]
    values = {role: {**stated, **changes.get(role, {})} for role, stated in FILLED.items()}
    kit.by_hand(place, files, values)
    for role in ("ensemble", "tensorrt_llm"):
        (place / role / "1").mkdir()
    made = kit.lay(place.with_name("assets")) / ASSETS
    (made / "tokenizer").rename(place / "tokenizer")
    (made / "engines").rename(place / "engines")
    return place


@pytest.mark.skipif(not VERSIONS, reason=originals.MISSING)
@pytest.mark.parametrize("version", VERSIONS)
def test_notes_followed_to_the_letter_give_no_error(tmp_path: Path, version: str) -> None:
    done = check(filled(tmp_path / "hand", version), "--json")
    told = json.loads(done.stdout)["findings"]
    assert {each["rule"] for each in told} == {"placeholder-unset", "not-a-model", "bls-queue"}
    assert done.exit_code == 0


@pytest.mark.skipif(not VERSIONS, reason=originals.MISSING)
@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("placeholder", {"tensorrt_llm": {"batching_strategy": "${batching_strategy}"}}),
        ("placeholder", {"tensorrt_llm": {"max_queue_size": "${max_queue_size}"}}),
        ("engine-path", {"tensorrt_llm": {"engine_dir": "engines"}}),
        ("decoupled-pair", {"tensorrt_llm_bls": {"decoupled_mode": "false"}}),
        ("ensemble-batch", {"ensemble": {"triton_max_batch_size": "64"}}),
        ("ensemble-type", {"ensemble": {"logits_datatype": "TYPE_FP16"}}),
        ("engine-beam", {"tensorrt_llm": {"max_beam_width": "4"}}),
        ("tokenizer-path", {"preprocessing": {"tokenizer_dir": "meta-llama/Llama-2-7b-hf"}}),
        ("bls-target", {"tensorrt_llm_bls": {"tensorrt_llm_model_name": "llama"}}),
    ],
)
def test_what_notes_leave_out_is_found(tmp_path: Path, rule: str, changes: dict[str, Mapping[str, str]]) -> None:
    told = json.loads(check(filled(tmp_path / "hand", VERSIONS[-1], **changes), "--json").stdout)["findings"]
    assert rule in {each["rule"] for each in told if each["severity"] == "error"}


@pytest.mark.skipif(not VERSIONS, reason=originals.MISSING)
def test_fixing_a_hand_filled_skeleton_keeps_what_nvidias_code_needs(tmp_path: Path) -> None:
    place = filled(tmp_path / "hand", VERSIONS[-1])
    (place / "preprocessing/1/model.py").write_text("path = parameters[\n    'multimodal_model_path']\n")
    check(place, "--fix")
    engine, texts = kit.config(place, "tensorrt_llm").parameters, kit.config(place, "preprocessing").parameters
    assert {"tokenizer_dir", "guided_decoding_backend", "xgrammar_tokenizer_info_path"} <= set(engine)
    assert "multimodal_model_path" in texts
    assert not any("${" in value.string_value for value in (*engine.values(), *texts.values()))
    assert set(json.loads(check(place, "--json").stdout)["counts"].items()) >= {("error", 0), ("remark", 0)}


def test_a_twin_of_forges_own_is_in_order(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "twin", kind=RuntimeKind.TWIN)
    assert config.ROOT not in (root / "tensorrt_llm/config.pbtxt").read_text()
    assert check(root).exit_code == 0
