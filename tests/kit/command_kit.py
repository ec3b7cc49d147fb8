"""Recipes resolved without a network: what the shipped plugins' commands are made from."""

from pathlib import Path

import msgspec
from msgspec.structs import replace

import shipped
from forge import trtllm
from forge.plan.resolved import Resolved
from forge.schema.values import Facts, FileFact, Host, Pinned, Recipe, SourceKind
from forge.trtllm.image_table import toolchain

FORMS = ("none", *trtllm.WEIGHT_ONLY, *trtllm.QUANTIZED)


CALIBRATED = set(trtllm.QUANTIZED)


REFUSED = {
    "t5": CALIBRATED - {"fp8"},
    "eagle": CALIBRATED,
    "medusa": CALIBRATED - {"fp8"},
    "redrafter": {*CALIBRATED, *trtllm.WEIGHT_ONLY},
}


VARIANTS = ("draft-target", "eagle", "lookahead", "medusa", "redrafter")


def resolved_of(file: Path) -> Resolved:
    wanted = shipped.recipe(file)
    files = tuple(FileFact(name, 1, "sha256:00") for name in ("config.json", "model.safetensors", "tokenizer.json"))
    pinned = Pinned(SourceKind.HUB, wanted.source.address, "c0ffee", files)
    facts = Facts(
        source=pinned,
        checkpoint=shipped.checkpoint(wanted),
        host=Host("3.11", "/usr/bin/python3.11", "linux-x86_64"),
        toolchain=toolchain(wanted.runtime.image),
        draft=replace(pinned, name="draft") if wanted.draft else None,
        calibration=replace(pinned, name="texts") if wanted.convert.calibration else None,
    )
    return Resolved(wanted, shipped.family(wanted), facts)


def forms() -> list[tuple[str, str, str]]:
    """(family, variant or "", quantization) for everything that forge's own put together."""
    plain = [(name, "", form) for name in ("gemma", "llama", "phi", "qwen", "t5") for form in FORMS]
    return plain + [("llama", name, form) for name in VARIANTS for form in FORMS]


def recipe(family: str, variant: str, form: str) -> Recipe:
    return msgspec.convert(
        {
            "name": "m",
            "source": {"hub": "a/b"},
            "family": family,
            "variant": variant or None,
            "draft": {"hub": "a/c"} if variant and variant != "lookahead" else None,
            "convert": {
                "tp": 2,
                "dtype": "float32" if family == "t5" else "float16",
                "quantization": form,
                "calibration": {"hub": "a/d"} if form in trtllm.QUANTIZED else None,
            },
            "build": {"max_num_tokens": 4096},
            "serve": {"enable_kv_cache_reuse": family != "t5"},
        },
        Recipe,
    )
