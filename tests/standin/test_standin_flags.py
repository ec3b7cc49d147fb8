"""The stand-in's tools take the flags of TensorRT-LLM 0.21's, and nothing else."""

import json
import re
from typing import cast

import pytest

import known_flags
import originals
from standin.fixtures import Said, convert, run_script, trtllm_build
from standin.image import library, script

LISTED = originals.table_of_flags()
TABLE: dict[str, dict[str, dict[str, object]]] = json.loads(
    (library() / "tensorrt_llm" / "_standin" / "flags.json").read_text()
)
SCRIPTS = {
    "llama": "models/core/llama",
    "gemma": "models/core/gemma",
    "qwen": "models/core/qwen",
    "phi": "models/core/phi",
    "enc_dec": "models/core/enc_dec",
    "medusa": "medusa",
    "eagle": "eagle",
    "redrafter": "redrafter",
}
TYPES = {"Path": "path", "CheckpointType": "enum", "enum KVCacheType": "str"}
SPELLED = {"MoeConfig.ExpertScaleNormalizationMode.RENORMALIZE": 1, "SUPPRESS": None}
OPEN = ("LoraManager.LORA_MODULE_IDS.keys()", "cluster_infos.keys()")
"""Choices that the shared table names by their expression only."""


def run_tool(tool: str, *argv: object) -> Said:
    if tool in SCRIPTS:
        return convert(SCRIPTS[tool], *argv)
    if tool == "quantize":
        return run_script(script("examples/quantization/quantize.py"), *argv)
    return trtllm_build(*argv)


def _name(tool: str) -> str:
    """As those call it who list flags."""
    return {"plugins": "trtllm-build:plugins"}.get(tool, tool if tool not in SCRIPTS else f"convert_checkpoint:{tool}")


def normal(flag: dict[str, object]) -> dict[str, object]:
    """A row of the shared table in the words of ours."""
    kind = str(flag["type"])
    row: dict[str, object] = {"also": flag["aliases"], "type": TYPES.get(kind, kind), "choices": flag["choices"]}
    if kind == "flag":
        row["type"] = "off" if flag.get("action") == "store_false" else "on"
    else:
        stated = flag["default"]
        row["default"] = SPELLED.get(stated, stated) if isinstance(stated, str) else stated
        row["unset"] = stated == "SUPPRESS"
    if row["choices"] in OPEN:
        row["choices"] = "open"
    return row | {name: flag[name] for name in ("nargs", "const", "required", "dest") if name in flag}


def ours(row: dict[str, object], theirs: dict[str, object]) -> dict[str, object]:
    """A row of our table with all that it leaves unsaid."""
    whole: dict[str, object] = {"also": [], "type": "str", "choices": None, **row}
    if whole["type"] not in {"on", "off"}:
        whole = {"default": None, "unset": False, **whole}
    if theirs["choices"] == "open":
        whole["choices"] = "open"
    return whole


@pytest.mark.skipif(not LISTED, reason="a list of NVIDIA's flags, made by hand, is not beside this checkout")
def test_the_table_says_what_was_read_from_the_tools_sources() -> None:
    assert LISTED
    shared = json.loads(LISTED.read_text())
    for tool, rows in TABLE.items():
        theirs = {flag["flag"]: normal(flag) for flag in shared[_name(tool)]["flags"]}
        assert {flag: ours(row, theirs[flag]) for flag, row in rows.items()} == theirs, tool


@pytest.mark.parametrize("tool", TABLE)
def test_the_table_has_the_flags_of_the_tools_own_sources(tool: str) -> None:
    """Their choices too, where they stand there in plain words."""
    theirs = known_flags.of_source(_name(tool))
    if not theirs:
        pytest.skip(originals.MISSING)
    own = {name: row for flag, row in TABLE[tool].items() for name in (flag, *cast("list[str]", row.get("also", [])))}
    assert own.keys() == theirs.keys()
    for name, row in theirs.items():
        if isinstance(row.get("choices"), list) and "choices" in own[name]:
            assert own[name]["choices"] == row["choices"], name


@pytest.mark.parametrize("tool", [*SCRIPTS, "quantize", "trtllm-build"])
def test_help_names_every_flag(tool: str) -> None:
    said = run_tool(tool, "--help")
    flags = [*TABLE[tool], *(list(TABLE["plugins"]) if tool == "trtllm-build" else [])]
    assert said.code == 0
    assert [flag for flag in flags if not re.search(rf"{flag}[\s,\]]", said.out)] == []


@pytest.mark.parametrize(
    ("tool", "argv", "complaint"),
    [
        ("llama", ["--model_dirs", "m"], "unrecognized arguments: --model_dirs m"),
        ("llama", ["--dtype", "fp16"], "argument --dtype: invalid choice: 'fp16'"),
        ("llama", ["--tp_size", "two"], "argument --tp_size: invalid int value: 'two'"),
        ("gemma", ["--model-dir", "m", "--output-model-dir", "o", "--tp_size", "1"], "unrecognized arguments: --tp_size 1"),
        ("gemma", ["--ckpt-type", "hf"], "the following arguments are required: --model-dir/--model_dir"),
        ("qwen", [], "the following arguments are required: --model_dir"),
        ("phi", ["--weight_only_precision", "int4_awq"], "invalid choice: 'int4_awq'"),
        ("enc_dec", ["-i", "m", "-o", "o", "--dtype", "auto"], "argument --dtype: invalid choice: 'auto'"),
        ("medusa", ["--dtype", "auto"], "argument --dtype: invalid choice: 'auto'"),
        ("redrafter", ["--model_dir", "m"], "the following arguments are required: --drafter_model_dir"),
        ("quantize", ["--qformat", "int8"], "argument --qformat: invalid choice: 'int8'"),
        ("trtllm-build", ["--tp_size", "2"], "unrecognized arguments: --tp_size 2"),
        ("trtllm-build", ["--use_paged_context_fmha", "true"], "argument --use_paged_context_fmha: invalid choice: 'true'"),
    ],
)
def test_an_unknown_argument_of_a_tool_is_a_usage_error(tool: str, argv: list[str], complaint: str) -> None:
    said = run_tool(tool, *argv)
    assert said.code == 2
    assert complaint in said.err
