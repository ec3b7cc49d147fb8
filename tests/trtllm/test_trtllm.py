"""Convert and build commands as exact argv, and held to the flags that NVIDIA's tools know."""

import msgspec
import pytest

from forge import Checkpoint, Command, trtllm
from forge.schema.values import BuildTable, ConvertTable, Recipe, Scalar, ServeTable, Source
from forge.trtllm.image_table import toolchain
from known_flags import known, strange

PLAIN = Recipe(name="m", source=Source(hub="owner/model"))


def test_flags_are_rendered_by_name_and_never_smuggle_another() -> None:
    table: dict[str, Scalar] = {"b": True, "a": False, "d-e": 1.5, "c": "x y", "f": -1, "g": "--evil"}
    assert trtllm.flags(table) == ("--b", "--c", "x y", "--d-e", "1.5", "--f=-1", "--g=--evil")


def test_switches_say_enable_and_disable() -> None:
    table: dict[str, Scalar] = {"use_paged_context_fmha": True, "context-fmha": False, "strip_plan": True}
    wanted = ("--context-fmha", "disable", "--strip_plan", "--use_paged_context_fmha", "enable")
    assert trtllm.flags(table, trtllm.SWITCHES) == wanted


def test_switches_are_those_of_nvidias_plugins() -> None:
    plugins = known("trtllm-build:plugins")
    switches = {name[2:] for name, flag in plugins.items() if flag.get("choices") == ["enable", "disable"]}
    assert switches == trtllm.SWITCHES


def test_trtllm_build_knows_every_flag_of_the_build() -> None:
    recipe = msgspec.structs.replace(PLAIN, build=BuildTable(max_num_tokens=9), serve=ServeTable(enable_kv_cache_reuse=True))
    (command,) = trtllm.build(recipe)
    assert strange(command.argv) == []


def test_commands_are_moved_by_whole_paths() -> None:
    command = Command(("x", "/forge/out", "/forge/out/a", "/forge/output", "--y", "/forge/model"), {"A": "1"})
    moved = trtllm.moved((command,), {"/forge/out": "/forge/out/b", "/forge/model": "/forge/draft"})
    assert moved == (Command(("x", "/forge/out/b", "/forge/out/b/a", "/forge/output", "--y", "/forge/draft"), {"A": "1"}),)


def test_further_flags_do_not_say_again_what_stands_there() -> None:
    command = Command(("trtllm-build", "--use-paged-context-fmha", "enable", "--max_draft_len=3"))
    values: dict[str, Scalar] = {"use_paged_context_fmha": True, "max_draft_len": 5, "context_fmha": False}
    (extended,) = trtllm.extended((command,), values)
    assert extended.argv == (*command.argv, "--context_fmha", "disable")


@pytest.mark.parametrize(
    ("image", "older"),
    [("25.08", True), ("25.02", True), ("25.09", False), ("26.07", False), ("my/own:image", False)],
)
def test_an_image_without_a_version_is_taken_for_new(image: str, older: bool) -> None:
    assert trtllm.older(toolchain(image), "1.0") is older


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
