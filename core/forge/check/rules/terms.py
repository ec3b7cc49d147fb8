"""What TensorRT-LLM's backend refuses of a model's parameters, whatever the engine: the others it warns of, and goes on."""

import re
from collections.abc import Iterator

from forge.check.model import Config, Kind, Model, Repository
from forge.check.rules.parameters import known
from forge.check.rules.rule import Found

GUIDE = "xgrammar_tokenizer_info_path"
_TYPE, _BACKEND = "gpt_model_type", "guided_decoding_backend"
_SIZES = ("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size")
_WHOLE, _REAL = re.compile(r"\s*[+-]?\d+"), re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
"""What C++'s stoi and stof take: a number, and whatever follows it."""
_COUNTS = ("max_tokens_in_paged_kv_cache", "sink_token_length", "max_beam_width")
_SHARES = ("kv_cache_free_gpu_mem_fraction", "cross_kv_cache_fraction")


def native(repository: Repository) -> Iterator[tuple[Model, Config]]:
    """The models of TensorRT-LLM's own backend, or that would be: the twin reads none of this."""
    for model, config in repository.of(Kind.ENGINE):
        engine = repository.engine(config)
        if config.backend == "tensorrtllm" and not (engine and engine.twin):
            yield model, config


def batching_type(repository: Repository) -> Iterator[Found]:
    for model, config in native(repository):
        stated = config.stated(_TYPE)
        words = known().words[_TYPE]
        if stated and stated not in words:
            what = f"{_TYPE} is {stated!r}: it can be {', '.join(words)}"
            yield Found(model.file, what, needle=f'"{_TYPE}"')


def lookahead_sizes(repository: Repository) -> Iterator[Found]:
    for model, config in native(repository):
        if config.stated("decoding_mode") != "lookahead":
            continue
        sizes = [_whole(config.stated(name)) for name in _SIZES]
        if absent := [name for name, size in zip(_SIZES, sizes, strict=True) if size is None]:
            what = f"decoding_mode is lookahead, and {', '.join(absent)} is no number"
            yield Found(model.file, what, needle='"decoding_mode"')
            continue
        window, ngram, verification = (size or 0 for size in sizes)
        if min(window, ngram) < 1 or verification < 0 or (ngram == 1 and (window, verification) != (1, 0)):
            what = f"lookahead sizes of {window}, {ngram} and {verification} are none"
            yield Found(model.file, what, "window and n-gram are 1 or more, the verification set 0 or more", f'"{_SIZES[0]}"')


def guided_decoding(repository: Repository) -> Iterator[Found]:
    for model, config in native(repository):
        path, backend = config.stated(GUIDE), config.stated(_BACKEND)
        if not path or not backend:
            continue
        if repository.holds(path) and path not in repository.guides:
            what = f"{GUIDE} is {path}: there is no such file"
            yield Found(model.file, what, "put it there (NVIDIA's generate_xgrammar_tokenizer_info.py makes it)", path)
        elif backend != "xgrammar":
            what = f"{_BACKEND} is {backend!r}, and the backend knows xgrammar alone"
            yield Found(model.file, what, needle=f'"{_BACKEND}"')


def cache_size(repository: Repository) -> Iterator[Found]:
    for model, config in native(repository):
        for key in _COUNTS:
            if (count := _whole(config.stated(key))) is not None and count < 1:
                yield Found(model.file, f"{key} is {count}, and has to be 1 or more", needle=f'"{key}"')
        for key in _SHARES:
            found = _REAL.match(config.stated(key))
            if found and not 0 < float(found[0]) < 1:
                yield Found(model.file, f"{key} is {found[0].strip()}, and has to lie between 0 and 1", needle=f'"{key}"')


def device_ids(repository: Repository) -> Iterator[Found]:
    for model, config in native(repository):
        engine = repository.engine(config)
        if engine is None or not engine.built:
            continue
        for key, of in (("gpu_device_ids", "GPU"), ("participant_ids", "MPI rank")):
            for listed in filter(None, config.stated(key).split(";")):
                ids = [each for each in listed.split(",") if each.strip()]
                if all(_whole(each) is not None for each in ids) and len(ids) != engine.ranks:
                    what = f"{key} names {listed}, and the engine has {engine.ranks} (tp x pp): it wants a {of} for each"
                    yield Found(model.file, what, needle=f'"{key}"')


def _whole(text: str) -> int | None:
    found = _WHOLE.match(text)
    return int(found[0]) if found else None
