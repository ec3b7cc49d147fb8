"""Engines: whether they are where configs say, whole, and made for what the configs ask of them."""

import re
from collections.abc import Iterator

from forge.check.model import Config, EngineFolder, Kind, Model, Repository, number, table, truth
from forge.check.rules.rule import Found
from forge.repository.config import ROOT
from forge.schema.positions import BEYOND, beyond
from forge.schema.values import RuntimeKind

PATHS = ("gpt_model_path", "encoder_model_path")
_RANK = re.compile(r"rank(\d+)\.engine")


def engines(repository: Repository) -> Iterator[tuple[Model, Config, EngineFolder]]:
    """Every model of the tensorrtllm backend with its own engine, where that was found."""
    for model, config in repository.of(Kind.ENGINE):
        if (engine := repository.engine(config)) is not None:
            yield model, config, engine


def halves(repository: Repository) -> Iterator[tuple[Model, EngineFolder]]:
    """Every engine that a model loads: its own, and before it the encoder's where there is one."""
    for model, config in repository.of(Kind.ENGINE):
        for key in reversed(PATHS):
            if (engine := repository.engine(config, key)) is not None:
                yield model, engine


def _built(repository: Repository) -> Iterator[tuple[Model, Config, EngineFolder]]:
    return ((model, config, engine) for model, config, engine in engines(repository) if engine.built)


def engine_path(repository: Repository) -> Iterator[Found]:
    for kind in (Kind.ENGINE, Kind.PREPROCESSING):
        for model, config in repository.of(kind):
            for key in PATHS:
                stated = config.stated(key)
                if stated and (wrong := _misplaced(repository, model, stated)):
                    yield Found(model.file, f"{key} is {stated}: {wrong[0]}", wrong[1], needle=stated)


def _misplaced(repository: Repository, model: Model, stated: str) -> tuple[str, str] | None:
    """What is wrong with a path, and the fix."""
    if not stated.startswith("/"):
        return "it depends on the folder that the server is started in", "write it from the root, as the server sees it"
    if stated not in repository.engines:
        return ("there is no such folder", "put the engine there") if repository.holds(stated) else None
    held = repository.served_by(model)
    if held is not None and held.serving and held.serving.contained and not stated.startswith(f"{ROOT}/"):
        return f"in the container that serves it the repository stands at {ROOT}", f"name the engine under {ROOT}"
    return None


def engine_unseen(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENGINE):
        for key in PATHS:
            stated = config.stated(key)
            if stated.startswith("/") and stated not in repository.engines and _misplaced(repository, model, stated) is None:
                what = f"{key} is {stated}, which is not on this machine: the engine there was not checked"
                yield Found(model.file, what, needle=stated)


def engine_config(repository: Repository) -> Iterator[Found]:
    for model, engine in halves(repository):
        if engine.broken:
            yield Found(engine.shown, f"{engine.broken}, and {model.folder} does not load without it")
        elif engine.twin and "build_config.json" not in engine.files:  # which forge lays beside the twin's
            what = "it is a Hugging Face checkpoint and no engine"
            yield Found(f"{engine.shown}/config.json", what, "convert it and run trtllm-build: `forge build` does both")
        elif not engine.built and not engine.twin:
            yield Found(f"{engine.shown}/config.json", "it is neither an engine's nor a checkpoint's: no pretrained_config")


def engine_ranks(repository: Repository) -> Iterator[Found]:
    for _, engine in halves(repository):
        if not engine.built:
            continue
        there = {int(match[1]) for name in engine.files if (match := _RANK.fullmatch(name))}
        wanted = set(range(engine.ranks))
        if missing := sorted(wanted - there):
            names = ", ".join(f"rank{rank}.engine" for rank in missing[:4])
            what = f"it was built for {engine.ranks} rank{'s' if engine.ranks > 1 else ''} (tp x pp), and {names} is missing"
            yield Found(engine.shown, what)
        elif extra := sorted(there - wanted):
            what = f"rank{extra[0]}.engine is there, and config.json says {engine.ranks} rank{'s' if engine.ranks > 1 else ''}"
            yield Found(engine.shown, f"{what}: files of two builds lie together")


def engine_world(repository: Repository) -> Iterator[Found]:
    for model, _, engine in _built(repository):
        held = repository.served_by(model)
        if held is not None and held.serving is not None and held.serving.image and held.serving.world != engine.ranks:
            what = f"the engine has {engine.ranks} ranks, and forge.json serves it with {held.serving.world}"
            yield Found(engine.shown, what, "build it again with `forge build`")
        elif repository.gpus and engine.ranks > len(repository.gpus):
            what = f"the engine was built for {engine.ranks} GPUs, and {len(repository.gpus)} are here"
            yield Found(engine.shown, what, "serve it on a machine with as many, or build with a smaller tp x pp")


def engine_batch(repository: Repository) -> Iterator[Found]:
    for model, config, engine in engines(repository):
        most = engine.limit("max_batch_size")
        if most and config.max_batch_size > most:
            what = f"takes batches of {config.max_batch_size}, and its engine was built for {most}"
            yield Found(model.file, what, f"set max_batch_size to {most}, or build for more", "max_batch_size")


def engine_beam(repository: Repository) -> Iterator[Found]:
    for model, config, engine in engines(repository):
        asked, most = _number(config, "max_beam_width"), engine.limit("max_beam_width")
        if most and asked > most:
            what = f"max_beam_width is {asked}, and the engine was built for {most}"
            yield Found(model.file, what, f"set it to {most}, or build with --max_beam_width {asked}", '"max_beam_width"')


def engine_input(repository: Repository) -> Iterator[Found]:
    for model, config, engine in _built(repository):
        longest, room = engine.limit("max_input_len"), engine.limit("max_num_tokens")
        if room and longest > room and truth(config.stated("enable_chunked_context")) is not True:
            what = f"the engine takes prompts of {longest} tokens, and {room} in one pass (max_num_tokens)"
            yield Found(model.file, what, "set enable_chunked_context to true, or build with a larger --max_num_tokens")
    for model, _, engine in engines(repository):
        held, most = repository.served_by(model), engine.limit("max_seq_len")
        if held is not None and most and held.sampling.max_tokens >= most:
            what = f"{held.name} asks for {held.sampling.max_tokens} tokens, and a prompt and its answer may be {most} long"
            yield Found("forge.json", what, "lower [sampling] max_tokens, or raise [build] max_seq_len", '"max_tokens"')


def trained_length(repository: Repository) -> Iterator[Found]:
    for model, _, engine in engines(repository):
        asked, kind = engine.limit("max_seq_len"), RuntimeKind.TWIN if engine.twin else RuntimeKind.ENGINE
        if trained := beyond(engine.model, asked):
            yield Found(model.file, f"max_seq_len {trained.told(asked)}: {BEYOND[kind]}")
    for model, _ in repository.of(Kind.LLMAPI):
        asked = number(model.arguments.get("max_seq_len"))
        checkpoint = repository.engines.get(str(model.arguments.get("model")))
        if checkpoint and (trained := beyond(checkpoint.config, asked)):
            yield Found(model.file, f"max_seq_len {trained.told(asked)}: {BEYOND[RuntimeKind.LLMAPI]}")


def _number(config: Config, key: str) -> int:
    text = config.stated(key)
    return int(text) if text.isdecimal() else 0


def kv_reuse(repository: Repository) -> Iterator[Found]:
    for model, config, engine in _built(repository):
        if engine.plugin("use_paged_context_fmha") is False and config.backend == "tensorrtllm":
            wanted = truth(config.stated("enable_kv_cache_reuse"))
            if wanted is not False:
                said = "is true" if wanted else "is not set, which means true"
                what = f"enable_kv_cache_reuse {said}, and the engine was built without paged context FMHA"
                yield Found(model.file, what, needle='"enable_kv_cache_reuse"')


def chunked_context(repository: Repository) -> Iterator[Found]:
    for model, config, engine in _built(repository):
        if engine.plugin("use_paged_context_fmha") is False and truth(config.stated("enable_chunked_context")):
            what = "enable_chunked_context is true, and the engine was built without paged context FMHA"
            yield Found(model.file, what, needle='"enable_chunked_context"')


def kv_tokens(repository: Repository) -> Iterator[Found]:
    for model, config, engine in _built(repository):
        most, length = _number(config, "max_tokens_in_paged_kv_cache"), engine.limit("max_seq_len")
        block = engine.plugin("tokens_per_block")
        page = block if isinstance(block, int) and block > 0 else 1
        least = -(-length // page) * page * max(_number(config, "max_beam_width"), 1)
        if most and most < least:
            what = f"max_tokens_in_paged_kv_cache is {most}, and one sequence can take {least}"
            yield Found(model.file, what, f"raise it to {least} or more, or leave it out", '"max_tokens_in_paged_kv_cache"')


def cross_cache(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENGINE):
        if config.stated("cross_kv_cache_fraction") and not config.stated("encoder_model_path"):
            what = "cross_kv_cache_fraction is set, and there is no encoder (encoder_model_path)"
            yield Found(model.file, what, needle='"cross_kv_cache_fraction"')


def inflight_engine(repository: Repository) -> Iterator[Found]:
    for model, config, engine in _built(repository):
        lacking = ", ".join(_lacking(engine))
        if config.stated("gpt_model_type").lower() in _INFLIGHT and lacking:
            what = f"gpt_model_type is {config.stated('gpt_model_type')}, and the engine was built without {lacking}"
            yield Found(model.file, what, needle='"gpt_model_type"')


def _lacking(engine: EngineFolder) -> Iterator[str]:
    """What batching in flight needs and the engine says that it has not; what it does not speak of counts as there."""
    plugins = table(engine.limits.get("plugin_config"))
    for name in ("gpt_attention_plugin", "remove_input_padding"):
        if name in plugins and plugins[name] in (None, False, "disable"):
            yield name
    cache = str(engine.limits.get("kv_cache_type") or "paged").lower().rpartition(".")[2]
    if cache != "paged" or plugins.get("paged_kv_cache") is False:
        yield "a paged KV cache"


_INFLIGHT = ("inflight_fused_batching", "inflight_batching")


def attention_window(repository: Repository) -> Iterator[Found]:
    for model, config, engine in _built(repository):
        sizes = [int(size) for size in config.stated("max_attention_window_size").split(",") if size.strip().isdecimal()]
        length = engine.limit("max_seq_len")
        if length and any(size > length for size in sizes):
            what = f"max_attention_window_size is {max(sizes)}, and the engine was built for sequences of {length}"
            yield Found(model.file, what, f"set it to {length} or less", '"max_attention_window_size"')
