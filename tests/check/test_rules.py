"""Each rule against a repository that breaks it and nothing else, and all rules against repositories that break none."""

import json
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

import check_kit as kit
import originals
from breaking import ASSETS, BREAKS, CONFIG, LLMAPI, NVIDIAS_BLS, Break, drops_blanks, llmapi
from forge.check import repository_reader, rules
from forge.check.rules import Finding, Repository, Severity, all_rules
from forge.repository import bls as siblings, publish
from forge.schema.values import COMMON_ROLES, Gpu, RuntimeKind, TextFile
from nvidias_bls import bls
from vllm_models import lay as lay_vllm

VERSIONS = originals.versions("0.19.0")
TWIN, ENGINE = RuntimeKind.TWIN, RuntimeKind.ENGINE
ELSEWHERE = {"moved", "engine-gpu", "open-control", "open-control-here"}
"""Rules that break by where the repository stands, not by what is in it: tested by name, below and in test_open_control."""


def look(root: Path) -> Repository:
    held = publish.inventory(root) if (root / "forge.json").exists() else None
    return repository_reader.read(root, held)


def found(root: Path) -> tuple[Finding, ...]:
    return rules.examine(look(root))


@pytest.mark.parametrize(("rule", "how", "change"), BREAKS, ids=[f"{rule}: {how}" for rule, how, _ in BREAKS])
def test_a_broken_rule_is_found_and_no_other(tmp_path: Path, rule: str, how: str, change: Break) -> None:
    root = kit.lay(tmp_path / "repository")
    change(root)
    told = found(root)
    assert {each.rule for each in told} == {rule}, told
    assert all(each.what and each.fix and each.file for each in told)


def test_every_rule_has_a_repository_that_breaks_it() -> None:
    assert {rule for rule, _, _ in BREAKS} | ELSEWHERE == {rule.id for rule in all_rules()}
    assert len({rule.id for rule in all_rules()}) == len(all_rules())


@pytest.mark.parametrize("kind", [ENGINE, TWIN])
@pytest.mark.parametrize("prefix", ["", "tiny"])
@pytest.mark.parametrize("inside", [False, True])
def test_what_forge_publishes_breaks_no_rule(tmp_path: Path, kind: RuntimeKind, prefix: str, inside: bool) -> None:
    assert found(kit.lay(tmp_path / "repository", prefix=prefix, kind=kind, inside=inside)) == ()


def test_an_unreadable_chat_template_is_found_by_file_and_line(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository")
    folder = root / ASSETS / "tokenizer"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    told: list[tuple[str, int]] = []
    for template in ("{% for m in messages %}{{ m.content }}{% endfor %}", "{{ messages[0].content"):
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}, indent=1))
        told += [(each.file.rpartition("/")[2], each.line) for each in found(root)]
    assert told == [("tokenizer_config.json", 2 + len(settings) + 2)]  # eos_token is an object of three lines
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert found(root) == (), "a file of its own comes first"
    (folder / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    assert [(each.file.rpartition("/")[2], each.line) for each in found(root)] == [("chat_template.jinja", 2)]


def test_a_streaming_ensemble_loses_blanks_unless_bls_is_beside_it(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository")
    drops_blanks(root)
    assert found(root) == (), "bls accumulates"
    shutil.rmtree(root / "tensorrt_llm_bls")
    (root / "forge.json").unlink()
    assert [each.file for each in found(root) if each.rule == "stream-blanks"] == ["ensemble/config.pbtxt"]
    kit.replace(root, "tensorrt_llm/config.pbtxt", "decoupled: true", "decoupled: false")
    assert "stream-blanks" not in {each.rule for each in found(root)}, "nothing streams"


def test_assets_inside_that_stop_a_plain_server_are_found(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository", inside=True)
    (root / "tensorrt_llm/_assets/engines/modeling.py").write_text(
        'ask("localhost:8001")'
    )  # a checkpoint's, and nobody's model
    assert found(root) == ()
    (root / "_assets").mkdir()
    assert {each.rule for each in found(root)} == {"not-a-model"}
    (root / "_assets").rmdir()
    (root / "tensorrt_llm/_assets/tokenizer/tokenizer.json").write_text("{")
    assert {each.file for each in found(root)} == {"tensorrt_llm/_assets/tokenizer/tokenizer.json"}


def test_a_wrong_name_in_either_subclass_parameter_is_found(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository", prefix="x")
    folder = root / "x-tensorrt_llm_bls"
    for text in (*bls(), *siblings.beside(bls())):
        (folder / text.path).parent.mkdir(exist_ok=True)
        (folder / text.path).write_text(text.content)
    kit.change(root, folder.name, lambda message: setattr(message, "default_model_filename", siblings.FILE))
    assert found(root) == ()
    for name in siblings.PARAMETERS:
        kit.parameter(root, folder.name, **{name: "preprocessing"})
        (told,) = found(root)
        assert (told.rule, told.severity, told.file) == ("bls-target", Severity.ERROR, "x-tensorrt_llm_bls/config.pbtxt")
        assert "x-preprocessing" in told.fix
        kit.parameter(root, folder.name, **{name: f"x-{name.removesuffix('_model_name')}"})


def test_two_models_under_prefixes_break_no_rule(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository", "one", prefix="one")
    assert found(kit.lay(root, "two", prefix="two")) == ()


@pytest.mark.parametrize("model", [LLMAPI, "TinyLlama/TinyLlama-1.1B-Chat-v1.0"])
def test_an_llmapi_model_breaks_no_rule(tmp_path: Path, model: str) -> None:
    root = kit.lay(tmp_path / "repository")
    llmapi(root, model)
    assert found(root) == ()


def test_two_vllm_models_sharing_a_card_break_no_rule(tmp_path: Path) -> None:
    lay_vllm(tmp_path, "one", gpu_memory_utilization=0.4)
    lay_vllm(tmp_path, "two", gpu_memory_utilization=0.6)
    lay_vllm(tmp_path, "three", kv_cache_memory_bytes=2**30)
    assert found(tmp_path) == ()


def test_a_misspelled_vllm_argument_is_told_with_the_right_one(tmp_path: Path) -> None:
    lay_vllm(tmp_path, "one", max_modle_len=5)
    (told,) = found(tmp_path)
    assert (told.rule, told.file, told.fix) == ("vllm-argument", "one/1/model.json", "did you mean 'max_model_len'?")


def nvidias(version: str) -> tuple[TextFile, ...]:
    """The skeletons of one version, with stand-ins for the code that they come with."""
    place = originals.skeletons(version)
    assert place
    configs = [TextFile(f"{role}/config.pbtxt", (place / role / "config.pbtxt").read_text()) for role in COMMON_ROLES]
    codes = {"preprocessing": "'multimodal_model_path']", "tensorrt_llm_bls": NVIDIAS_BLS, "postprocessing": ""}
    code = [TextFile(f"{role}/1/model.py", text) for role, text in codes.items()]
    return (*configs, *code, *(TextFile(f"{role}/1/.gitkeep", "") for role in ("ensemble", "tensorrt_llm")))


@pytest.mark.skipif(not VERSIONS, reason=originals.MISSING)
@pytest.mark.parametrize("version", VERSIONS)
def test_nvidias_skeletons_filled_by_forge_break_no_rule(tmp_path: Path, version: str) -> None:
    assert found(kit.lay(tmp_path / "repository", skeletons=nvidias(version))) == ()


def test_a_repository_that_was_moved_is_told_by_its_configs(tmp_path: Path) -> None:
    kit.lay(tmp_path / "before", kind=TWIN).rename(tmp_path / "after")
    assert {each.rule for each in found(tmp_path / "after")} == {"moved"}


def test_an_engine_for_another_gpu_is_found(tmp_path: Path) -> None:
    seen = look(kit.lay(tmp_path / "repository"))
    here = (Gpu("NVIDIA GeForce RTX 4090", 0, "8.9"),)
    assert rules.examine(replace(seen, gpus=here, architectures={kit.NAME: "sm_89"})) == ()
    (told,) = rules.examine(replace(seen, gpus=here, architectures={kit.NAME: "sm_120"}))
    assert (told.rule, told.severity) == ("engine-gpu", Severity.ERROR)
    assert "12.0" in told.what
    assert "RTX 4090 has 8.9" in told.what


def test_an_old_engine_says_itself_what_it_was_built_on(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository")
    kit.document(root, CONFIG, build_config__auto_parallel_config={"cluster_key": "H100-PCIe"})
    (told,) = rules.examine(replace(look(root), gpus=(Gpu("NVIDIA L4", 0, "8.9"),)))
    assert (told.rule, "9.0" in told.what) == ("engine-gpu", True)


def test_an_engine_for_more_gpus_than_are_here_is_found(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository")
    kit.document(root, CONFIG, pretrained_config__mapping={"tp_size": 2, "pp_size": 1, "world_size": 2})
    (root / ASSETS / "engines/rank1.engine").write_bytes(b"\0" * 2000)
    kit.replace(root, "forge.json", '"image"', '"world": 2, "image"')
    assert found(root) == ()
    (told,) = rules.examine(replace(look(root), gpus=(Gpu("one", 0, "8.9"),)))
    assert told.rule == "engine-world"


def test_an_engine_of_another_version_is_found_with_fitting_image(tmp_path: Path) -> None:
    seen = look(kit.lay(tmp_path / "repository"))
    image = "nvcr.io/nvidia/tritonserver:{}-trtllm-python-py3".format
    assert rules.examine(replace(seen, image=image("25.06"), trtllm="0.20.0")) == ()
    (told,) = rules.examine(replace(seen, image=image("25.08"), trtllm="0.21.0"))
    assert told.rule == "engine-image"
    assert "25.08" in told.what
    assert "25.06 or 25.07" in told.fix


def test_several_instances_have_a_place_where_each_has_its_gpus(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository")
    kit.replace(root, "tensorrt_llm/config.pbtxt", r"count: 1(\s+kind: KIND_CPU)", r"count: 2\1")
    kit.parameter(root, "tensorrt_llm", gpu_device_ids="0;1")
    assert found(root) == ()


def test_a_misspelled_parameter_is_told_with_right_one_and_line(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository")
    kit.parameter(root, "tensorrt_llm", kv_cache_free_gpu_mem_fractoin="0.5")
    (told,) = found(root)
    assert told.fix == "did you mean 'kv_cache_free_gpu_mem_fraction'?"
    lines = (root / told.file).read_text().splitlines()
    assert "kv_cache_free_gpu_mem_fractoin" in lines[told.line - 1]


def test_a_renamed_bls_with_siblings_from_parameters_is_well(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository", prefix="x")
    folder = root / "x-tensorrt_llm_bls"
    (folder / "1/model.py").write_text(NVIDIAS_BLS)
    (folder / "1/forge_bls.py").write_text('from model import TritonPythonModel as Nvidias\n# "preprocessing_model_name"\n')
    kit.change(root, "x-tensorrt_llm_bls", lambda message: setattr(message, "default_model_filename", "forge_bls.py"))
    assert found(root) == ()


def test_nvidias_own_bls_asks_by_literals_whatever_parameters_say(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository", prefix="x")
    (root / "x-tensorrt_llm_bls/1/model.py").write_text(NVIDIAS_BLS)
    told = found(root)
    assert {each.file for each in told} == {"x-tensorrt_llm_bls/1/model.py"}
    assert "'preprocessing' for preprocessing" in told[0].what
    assert "x-preprocessing" in told[0].fix


def test_code_that_is_no_python_is_not_the_checks_business(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository")
    (root / "tensorrt_llm_bls/1/model.py").write_text("this is no Python\0")
    assert found(root) == ()


def test_one_placeholder_hides_no_other_fault_of_its_file(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository")
    kit.parameter(root, "postprocessing", tokenizer_type="llama")
    kit.replace(root, "postprocessing/config.pbtxt", "max_batch_size: 8", "max_batch_size: ${size}")
    shutil.rmtree(root / "postprocessing" / "1")
    assert {each.rule for each in found(root)} == {"placeholder", "tokenizer-type", "version-folder"}


def test_the_fix_of_a_missing_version_names_the_model(tmp_path: Path) -> None:
    root = kit.lay(tmp_path / "repository")
    shutil.rmtree(root / "preprocessing" / "1")
    (told,) = [each for each in found(root) if each.rule == "version-folder"]
    assert told.fix == "make the folder: `mkdir preprocessing/1`, and put its model.py there"
