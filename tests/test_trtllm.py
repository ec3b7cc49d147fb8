"""Convert and build commands as exact argv, and held to the flags that NVIDIA's tools know."""

import json
from pathlib import Path

import msgspec
import pytest

import forge_gemma
import forge_llama
from forge import Checkpoint, trtllm
from forge.compatibility import toolchain
from forge.model import BuildTable, ConvertTable, Recipe, Scalar, ServeTable, Source

FLAGS_FILE = Path(__file__).parent.parent.parent / "shared" / "data" / "flags-0.21.json"
QUANTIZATIONS = ("none", *trtllm.WEIGHT_ONLY, *trtllm.QUANTIZED)
PLAIN = Recipe(name="m", source=Source(hub="owner/model"))


def _known(tool: str) -> dict[str, dict[str, object]]:
    if not FLAGS_FILE.is_file():
        pytest.skip("the list of NVIDIA's flags stands beside the repository, and is not here")
    tools = json.loads(FLAGS_FILE.read_text(encoding="utf-8"))
    return {name: flag for flag in tools[tool]["flags"] for name in (flag["flag"], *flag["aliases"])}


def _named(argv: tuple[str, ...]) -> set[str]:
    return {word.partition("=")[0] for word in argv if word.startswith("--")}


def test_flags_are_rendered_by_name_and_never_smuggle_another() -> None:
    table: dict[str, Scalar] = {"b": True, "a": False, "d-e": 1.5, "c": "x y", "f": -1, "g": "--evil"}
    assert trtllm.flags(table) == ("--b", "--c", "x y", "--d-e", "1.5", "--f=-1", "--g=--evil")


def test_switches_say_enable_and_disable() -> None:
    table: dict[str, Scalar] = {"use_paged_context_fmha": True, "context-fmha": False, "strip_plan": True}
    wanted = ("--context-fmha", "disable", "--strip_plan", "--use_paged_context_fmha", "enable")
    assert trtllm.flags(table, trtllm.SWITCHES) == wanted


def test_switches_are_those_of_nvidias_plugins() -> None:
    plugins = _known("trtllm-build:plugins")
    switches = {name[2:] for name, flag in plugins.items() if flag.get("choices") == ["enable", "disable"]}
    assert switches == trtllm.SWITCHES


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize(("plugin", "tool"), [(forge_llama, "llama"), (forge_gemma, "gemma")])
def test_every_flag_is_one_that_nvidias_tool_knows(plugin: object, tool: str, quantization: str) -> None:
    recipe = msgspec.structs.replace(PLAIN, convert=msgspec.convert({"tp": 2, "quantization": quantization}, ConvertTable))
    family = forge_llama if plugin is forge_llama else forge_gemma
    (command,) = family.forge_convert_commands(recipe, toolchain("25.08"))
    script = "quantize" if command.argv[1].endswith("quantize.py") else f"convert_checkpoint:{tool}"
    known = _known(script)
    assert _named(command.argv) <= set(known)
    for name, value in zip(command.argv, command.argv[1:], strict=False):
        choices = known.get(name, {}).get("choices")
        assert not isinstance(choices, list) or value in choices


def test_every_flag_of_the_build_is_one_that_trtllm_build_knows() -> None:
    recipe = msgspec.structs.replace(PLAIN, build=BuildTable(max_num_tokens=9), serve=ServeTable(enable_kv_cache_reuse=True))
    (command,) = trtllm.build(recipe)
    assert _named(command.argv) <= {*_known("trtllm-build"), *_known("trtllm-build:plugins")}


def test_the_build_says_every_limit_aloud() -> None:
    recipe = msgspec.structs.replace(
        PLAIN,
        convert=ConvertTable(tp=2, pp=2),
        build=BuildTable(max_num_tokens=4096, args={"gemm_plugin": "fp8", "use_paged_context_fmha": True}),
    )
    (command,) = trtllm.build(recipe)
    assert " ".join(command.argv) == (
        "trtllm-build --checkpoint_dir /forge/checkpoint --output_dir /forge/out --max_batch_size 8 "
        "--max_input_len 1024 --max_seq_len 2048 --max_beam_width 1 --max_num_tokens 4096 --workers 4 "
        "--gemm_plugin fp8 --use_paged_context_fmha enable"
    )


def test_cache_reuse_turns_paged_context_attention_on() -> None:
    (command,) = trtllm.build(msgspec.structs.replace(PLAIN, serve=ServeTable(enable_kv_cache_reuse=True)))
    assert command.argv[-4:] == ("--gemm_plugin", "auto", "--use_paged_context_fmha", "enable")


def test_heads_and_layers_have_to_divide_among_the_gpus() -> None:
    recipe = msgspec.structs.replace(PLAIN, convert=ConvertTable(tp=2, pp=4))
    shape = Checkpoint({"num_attention_heads": 9, "num_hidden_layers": 30})
    assert [(each.where, each.hint) for each in trtllm.check(recipe, shape)] == [
        ("convert.tp", "these do: 1"),
        ("convert.pp", "these do: 1, 2"),
    ]
    assert trtllm.check(recipe, Checkpoint({"num_attention_heads": 8, "num_hidden_layers": 32})) == ()
    assert trtllm.check(recipe, Checkpoint()) == ()
