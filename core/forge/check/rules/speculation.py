"""Guessing ahead: whether the engine was built for what decoding_mode and bls ask of it."""

from collections.abc import Iterator

from forge.check.model import EngineFolder, Repository, number
from forge.check.rules.decoupled import pairs
from forge.check.rules.engine import engines
from forge.check.rules.rule import Found

MODES = {
    "medusa": (4, "medusa"),
    "lookahead": (8, "lookahead_decoding"),
    "redrafter": (16, "explicit_draft_tokens"),
    "explicit_draft_tokens": (16, "explicit_draft_tokens"),
    "eagle": (32, "eagle"),
}
"""decoding_mode of the backend -> what build_config says of an engine that was built for it: a number, or a word.

Facts of TensorRT-LLM's SpeculativeDecodingMode, whose members are written into config.json as powers of two.
"""


def decoding_mode(repository: Repository) -> Iterator[Found]:
    for model, config, engine in engines(repository):
        wanted = MODES.get(config.stated("decoding_mode").lower())
        if engine.built and wanted is not None and not _is(engine, *wanted):
            mode = config.stated("decoding_mode")
            what = f"decoding_mode is {mode!r}, and the engine was not built with --speculative_decoding_mode {wanted[1]}"
            yield Found(model.file, what, needle='"decoding_mode"')


def _is(engine: EngineFolder, bit: int, word: str) -> bool:
    stated = engine.limits.get("speculative_decoding_mode")
    if isinstance(stated, str) and not stated.isdecimal():
        return stated.lower().rpartition(".")[2] == word
    return bool(number(stated) & bit)


def draft_length(repository: Repository) -> Iterator[Found]:
    drafted = {bls.folder: config.stated("tensorrt_llm_draft_model_name") for bls, config, _, _ in pairs(repository)}
    for bls, _, member, theirs in pairs(repository):
        name, engine = drafted[bls.folder], repository.engine(theirs)
        if not name or member.folder == name or engine is None or not engine.built:
            continue
        if "max_draft_len" in engine.limits and engine.limit("max_draft_len") == 0:
            what = f"{bls.folder} is given the draft model {name!r}, and the engine of {member.folder} takes no draft tokens"
            yield Found(bls.file, f"{what} (max_draft_len 0)", needle='"tensorrt_llm_draft_model_name"')
