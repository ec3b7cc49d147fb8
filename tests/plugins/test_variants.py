"""Speculative decoding: exact command lines and settings of each variant, over the families that it stands over."""

from types import ModuleType

import msgspec
import pytest

import forge_draft_target
import forge_eagle
import forge_lookahead
import forge_medusa
import forge_redrafter
from forge import Checkpoint, Role
from forge.plan.families import Family
from forge.schema.values import Recipe
from forge.testing import PluginConformance
from forge.trtllm.image_table import toolchain

TOOLS = toolchain("25.08")
LLAMA = Checkpoint({"architectures": ["LlamaForCausalLM"], "num_attention_heads": 8, "vocab_size": 32000})
QWEN = Checkpoint({**LLAMA.config, "architectures": ["Qwen2ForCausalLM"]})
GEMMA = Checkpoint({**LLAMA.config, "architectures": ["GemmaForCausalLM"]})
OTHER = Checkpoint({**LLAMA.config, "vocab_size": 32001, "num_attention_heads": 9, "max_position_embeddings": 1024})
BUILD = (
    "trtllm-build --checkpoint_dir /forge/checkpoint --output_dir /forge/out --max_batch_size 8 --max_input_len 1024 "
    "--max_seq_len 2048 --max_beam_width 1 --workers 1 --gemm_plugin auto"
)
PLACES = "--model_dir /forge/model --output_dir /forge/out --dtype float16 --tp_size 1 --pp_size 1 --workers 1"


def _recipe(variant: str, **told: object) -> Recipe:
    head = {"name": "m", "source": {"hub": "a/b"}, "variant": variant, "convert": {"dtype": "float16"}}
    return msgspec.convert({**head, **told}, Recipe)


class TestDraftTarget(PluginConformance):
    plugin = forge_draft_target
    recipe = _recipe("draft-target")


class TestEagle(PluginConformance):
    plugin = forge_eagle
    recipe = _recipe("eagle", speculation={"choices": [[0], [0, 0], [1]], "num_eagle_layers": 2})


class TestLookahead(PluginConformance):
    plugin = forge_lookahead
    recipe = _recipe("lookahead")


class TestMedusa(PluginConformance):
    plugin = forge_medusa
    recipe = _recipe("medusa", speculation={"choices": [[0], [0, 0]]})


class TestReDrafter(PluginConformance):
    plugin = forge_redrafter
    recipe = _recipe("redrafter")


def _converted(recipe: Recipe, checkpoint: Checkpoint = LLAMA, image: str = "25.08") -> list[str]:
    return [" ".join(each.argv) for each in Family.of(recipe, checkpoint).convert_commands(toolchain(image))]


def _built(recipe: Recipe, checkpoint: Checkpoint = LLAMA) -> list[str]:
    return [" ".join(each.argv) for each in Family.of(recipe, checkpoint).build_commands(TOOLS)]


def _problems(
    recipe: Recipe, checkpoint: Checkpoint = LLAMA, draft: Checkpoint | None = None, image: str = "25.08"
) -> list[str]:
    return [each.where for each in Family.of(recipe, checkpoint, draft).check(toolchain(image))]


def _settings(recipe: Recipe) -> dict[Role, dict[str, object]]:
    roles = Family.of(recipe, LLAMA).config_overrides().roles
    return {role: dict(values) for role, values in roles.items()}


def test_eagle_converts_both_at_once_and_builds_paged_attention() -> None:
    recipe = _recipe("eagle", speculation={"max_draft_len": 31})
    assert _converted(recipe) == [
        (
            f"python3 /app/examples/eagle/convert_checkpoint.py {PLACES} --eagle_model_dir /forge/draft --max_draft_len 31 "
            "--max_non_leaves_per_layer 10 --num_eagle_layers 4"
        )
    ]
    assert _built(recipe) == [f"{BUILD} --speculative_decoding_mode eagle --use_paged_context_fmha enable"]
    assert _settings(recipe) == {Role.TENSORRT_LLM: {"decoding_mode": "eagle"}}


def test_cache_reuse_does_not_say_paged_attention_twice() -> None:
    (line,) = _built(_recipe("eagle", serve={"enable_kv_cache_reuse": True}))
    assert line.count("--use_paged_context_fmha enable") == 1


def test_a_tree_of_guesses_reaches_the_config() -> None:
    table = {"choices": [[0], [0, 1], [2]]}
    eagle = _settings(_recipe("eagle", speculation={**table, "num_eagle_layers": 2}))
    medusa = _settings(_recipe("medusa", speculation=table))
    assert eagle[Role.TENSORRT_LLM]["eagle_choices"] == medusa[Role.TENSORRT_LLM]["medusa_choices"] == "{0}, {0, 1}, {2}"


SIZES: list[tuple[str, dict[str, object], str]] = [
    ("eagle", {"choices": [[0], [0, 0]]}, "speculation.choices"),
    ("eagle", {"choices": [[0], [0, 0]], "num_eagle_layers": 2}, ""),
    ("eagle", {"choices": [[0, 0]], "num_eagle_layers": 2}, "speculation.choices"),
    ("medusa", {"choices": [[0], [0, 0], [1]], "max_draft_len": 2}, "speculation.choices"),
    ("medusa", {"choices": [[]]}, "speculation.choices"),
    ("medusa", {"num_medusa_heads": 3}, "speculation.num_medusa_heads"),
    ("medusa", {"num_medusa_heads": 1, "choices": [[0], [1]]}, ""),
    ("lookahead", {"ngram_size": 1}, "speculation.ngram_size"),
    ("lookahead", {"window_size": 1, "ngram_size": 2, "verification_set_size": 0}, "speculation.ngram_size"),
    ("lookahead", {"window_size": 2, "ngram_size": 2, "verification_set_size": 0}, ""),
]


@pytest.mark.parametrize(("variant", "table", "where"), SIZES)
def test_sizes_that_do_not_go_together_are_told(variant: str, table: dict[str, object], where: str) -> None:
    assert _problems(_recipe(variant, speculation=table)) == ([where] if where else [])


def test_medusa_converts_by_its_script_and_names_its_base() -> None:
    own = "--max_medusa_token_len 63 --medusa_model_dir /forge/draft"
    script = "python3 /app/examples/medusa/convert_checkpoint.py"
    recipe = _recipe("medusa")
    assert _converted(recipe) == [f"{script} {PLACES} {own} --num_medusa_heads 4"]
    assert _converted(recipe, QWEN) == [f"{script} {PLACES} {own} --model_type qwen2 --num_medusa_heads 4"]
    assert _built(recipe) == [f"{BUILD} --speculative_decoding_mode medusa"]
    assert _settings(recipe) == {Role.TENSORRT_LLM: {"decoding_mode": "medusa"}}


def test_medusas_heads_are_attached_by_quantize_where_that_calibrates() -> None:
    table = {"dtype": "float16", "quantization": "fp8", "calibration": {"hub": "a/c", "size": 64}}
    assert _converted(_recipe("medusa", convert=table, speculation={"max_draft_len": 31})) == [
        (
            "python3 /app/examples/quantization/quantize.py --model_dir /forge/model --output_dir /forge/out --dtype float16 "
            "--qformat fp8 --tp_size 1 --pp_size 1 --calib_dataset /forge/calibration --calib_size 64 --max_draft_len 31 "
            "--medusa_model_dir /forge/draft --num_medusa_heads 4"
        )
    ]


def test_redrafter_converts_both_at_once_before_1_0() -> None:
    recipe = _recipe(
        "redrafter", speculation={"num_beams": 4}, convert={"dtype": "float16", "tp": 2, "args": {"storage-type": "fp16"}}
    )
    assert _converted(recipe) == [
        (
            "python3 /app/examples/redrafter/convert_checkpoint.py --model_dir /forge/model --drafter_model_dir /forge/draft "
            "--output_dir /forge/out --dtype float16 --tp_size 2 --workers 2 --redrafter_draft_len_per_beam 5 "
            "--redrafter_num_beams 4 --storage-type fp16"
        )
    ]
    assert _built(_recipe("redrafter")) == [f"{BUILD} --speculative_decoding_mode explicit_draft_tokens"]
    assert _settings(recipe) == {Role.TENSORRT_LLM: {"decoding_mode": "redrafter"}}


def test_redrafter_attaches_to_the_familys_conversion_from_1_0() -> None:
    base, attach, clear = _converted(_recipe("redrafter"), QWEN, "25.09")
    assert base == (
        "python3 /app/examples/models/core/qwen/convert_checkpoint.py --model_dir /forge/model --output_dir /forge/out/base "
        "--dtype float16 --tp_size 1 --pp_size 1 --workers 1"
    )
    assert "--base_model_checkpoint_dir /forge/out/base --drafter_model_dir /forge/draft --output_dir /forge/out " in attach
    assert clear == "rm -r /forge/out/base"


def test_what_redrafter_can_do_depends_on_the_image() -> None:
    recipe = _recipe("redrafter", convert={"dtype": "float16", "quantization": "fp8"})
    assert _problems(recipe, QWEN) == ["variant", "convert.quantization"]
    assert _problems(recipe, QWEN, image="25.09") == []


@pytest.mark.parametrize(
    ("window", "ngram", "verification", "length"),
    [(7, 7, 7, 83), (4, 3, 4, 15), (1, 1, 0, 0), (5, 1, 3, 0), (2, 2, 0, 1), (1, 2, 1, 1)],
)
def test_the_longest_lookahead_draft_is_counted_as_tensorrt_llm_does(
    window: int, ngram: int, verification: int, length: int
) -> None:
    assert forge_lookahead.draft_length(window, ngram, verification) == length


def test_lookahead_says_the_same_sizes_in_engine_and_config() -> None:
    recipe = _recipe("lookahead", speculation={"window_size": 4, "ngram_size": 3, "verification_set_size": 4})
    assert _built(recipe) == [f"{BUILD} --max_draft_len 15 --speculative_decoding_mode lookahead_decoding"]
    assert _settings(recipe) == {
        Role.TENSORRT_LLM: {
            "decoding_mode": "lookahead",
            "lookahead_window_size": 4,
            "lookahead_ngram_size": 3,
            "lookahead_verification_set_size": 4,
        }
    }


def test_lookahead_leaves_the_conversion_to_any_family() -> None:
    recipe = _recipe("lookahead")
    for checkpoint in (LLAMA, QWEN, GEMMA):
        plain = msgspec.structs.replace(recipe, variant=None)
        assert _converted(recipe, checkpoint) == _converted(plain, checkpoint)
        assert _built(recipe, checkpoint)[0].startswith(_built(plain, checkpoint)[0])


@pytest.mark.parametrize("checkpoint", [LLAMA, QWEN, GEMMA])
def test_draft_target_does_as_the_family_for_each(checkpoint: Checkpoint) -> None:
    recipe = _recipe("draft-target")
    (plain,) = _converted(msgspec.structs.replace(recipe, variant=None), checkpoint)
    target = plain.replace("/forge/out", "/forge/out/target")
    draft = plain.replace("/forge/out", "/forge/out/draft").replace("/forge/model", "/forge/draft")
    assert _converted(recipe, checkpoint) == [target, draft]


def test_draft_target_builds_for_drafts_with_paged_attention() -> None:
    target, draft = _built(_recipe("draft-target", speculation={"max_draft_len": 5}))
    head = BUILD.replace("/forge/checkpoint", "/forge/checkpoint/{0}").replace("/forge/out", "/forge/out/{0}")
    drafts = "--max_draft_len 5 --speculative_decoding_mode draft_tokens_external"
    assert target == f"{head.format('target')} {drafts} --use_paged_context_fmha enable"
    assert draft == f"{head.format('draft')} --use_paged_context_fmha enable"


def test_draft_target_keeps_both_caches_and_names_both_models() -> None:
    needed = {"enable_kv_cache_reuse": True, "exclude_input_in_output": False}
    assert _settings(_recipe("draft-target")) == {
        Role.TENSORRT_LLM: needed,
        Role.DRAFT: needed,
        Role.BLS: {"tensorrt_llm_model_name": "tensorrt_llm", "tensorrt_llm_draft_model_name": "tensorrt_llm_draft"},
    }


def test_parameters_that_undo_draft_target_are_refused() -> None:
    parameters = {
        "tensorrt_llm": {"enable_kv_cache_reuse": "true", "exclude_input_in_output": True},
        "tensorrt_llm_draft": {"enable_kv_cache_reuse": False},
    }
    assert _problems(_recipe("draft-target", serve={"parameters": parameters})) == [
        "serve.parameters.tensorrt_llm.exclude_input_in_output",
        "serve.parameters.tensorrt_llm_draft.enable_kv_cache_reuse",
    ]


@pytest.mark.parametrize(
    ("variant", "where"),
    [
        ("eagle", ["draft"]),
        ("redrafter", ["draft"]),
        ("medusa", []),
        ("draft-target", ["draft", "build.max_seq_len"]),
    ],
)
def test_a_draft_of_another_vocabulary_is_refused(variant: str, where: list[str]) -> None:
    assert _problems(_recipe(variant), LLAMA, OTHER) == where
    assert _problems(_recipe(variant), LLAMA, LLAMA) == []


def test_a_drafts_heads_have_to_divide_among_the_gpus_too() -> None:
    recipe = _recipe("draft-target", convert={"tp": 2}, build={"max_seq_len": 1024})
    draft = Checkpoint({**OTHER.config, "vocab_size": 32000})
    assert _problems(recipe, LLAMA, draft) == ["convert.tp"]


@pytest.mark.parametrize(
    ("variant", "checkpoint", "able"),
    [
        ("eagle", LLAMA, True),
        ("eagle", QWEN, False),
        ("medusa", QWEN, True),
        ("medusa", GEMMA, False),
        ("redrafter", LLAMA, True),
        ("redrafter", QWEN, False),
        ("lookahead", GEMMA, True),
        ("draft-target", GEMMA, True),
        ("eagle", Checkpoint(), True),
    ],
)
def test_a_variant_stands_over_what_its_script_reads(variant: str, checkpoint: Checkpoint, able: bool) -> None:
    family = Family.of(_recipe(variant, family=None if checkpoint.config else "llama"), checkpoint)
    assert ("variant" not in [each.where for each in family.check(TOOLS)]) is able


@pytest.mark.parametrize("plugin", [forge_eagle, forge_redrafter])
def test_scripts_without_stages_refuse_them(plugin: ModuleType) -> None:
    variant = plugin.__name__.removeprefix("forge_")
    recipe = _recipe(variant, convert={"pp": 2, "dtype": "float16"})
    assert _problems(recipe) == ["convert.pp"]
