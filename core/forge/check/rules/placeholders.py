"""Configs that nobody filled to the end, or that cannot be read at all."""

import re
from collections.abc import Iterator

from forge.check.model import Config, Kind, Model, Repository
from forge.check.rules.rule import Found
from forge.repository.config import placeholders
from forge.schema.tags import version

NEEDED = {
    Kind.ENGINE: ("gpt_model_type", "gpt_model_path"),
    Kind.PREPROCESSING: ("tokenizer_dir",),
    Kind.POSTPROCESSING: ("tokenizer_dir",),
}
"""Parameters that a model does not load without."""
GUIDED = ("tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend")
"""Read by NVIDIA's tensorrtllm backend without asking whether they are there; an empty or unfilled one it takes for none.

getGuidedDecodingConfigFromParams in model_instance_state.cc, in every version whose skeleton has guided_decoding_guide.
"""
_GUIDES = (0, 19)
"""The first TensorRT-LLM whose backend reads these, whatever inputs a config has; the engine says which it is."""
_TEXTS = re.compile(r'"(?:\\.|[^"\\\n])*"')
_INSIDE = re.compile(r"\$\{(\w+)\}")


def bare(model: Model) -> tuple[str, ...]:
    """Placeholders that stand where no text can: with one of them config.pbtxt is no config."""
    return placeholders(_TEXTS.sub('""', model.text))


def missing(repository: Repository, model: Model, config: Config) -> tuple[str, ...]:
    """Parameters that have to be there, be they empty, and are not."""
    wanted: tuple[str, ...] = ()
    if repository.kinds[model.folder] is Kind.ENGINE and config.backend == "tensorrtllm":
        engine = repository.engine(config)
        guides = any(tensor.name == "guided_decoding_guide" for tensor in config.inputs)
        guides |= engine is not None and version(engine.version) >= _GUIDES
        wanted = GUIDED if guides and not (engine and engine.twin) else ()
    if "'multimodal_model_path']" in model.sources.get(model.code, ""):
        wanted = ("multimodal_model_path",)
    return tuple(key for key in wanted if key not in config.parameters)


def idle(repository: Repository, model: Model, config: Config) -> tuple[str, ...]:
    """Parameters that are left unfilled and that their reader takes for unset."""
    needed = NEEDED.get(repository.kinds[model.folder], ())
    return tuple(key for key, value in config.parameters.items() if _INSIDE.search(value) and key not in needed)


def unreadable(repository: Repository) -> Iterator[Found]:
    for model in repository.models:
        if model.broken and not bare(model):
            yield Found(model.file, f"it cannot be read: {model.broken}")


def placeholder(repository: Repository) -> Iterator[Found]:
    for model in repository.models:
        left = bare(model)
        if model.config is not None:
            spared = idle(repository, model, model.config)
            kept = {name for key in spared for name in _INSIDE.findall(model.config.parameters[key])}
            left = tuple(name for name in placeholders(model.text) if name not in kept)
        for name in left:
            yield Found(model.file, f"${{{name}}} was never filled, and the model does not load", needle=f"${{{name}}}")


def placeholder_unset(repository: Repository) -> Iterator[Found]:
    for model, config in repository.readable():
        if keys := idle(repository, model, config):
            some = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            yield Found(
                model.file, f"placeholders are left in {some}: they count as unset", needle=config.parameters[next(iter(keys))]
            )


def parameter_missing(repository: Repository) -> Iterator[Found]:
    for model, config in repository.readable():
        for key in NEEDED.get(repository.kinds[model.folder], ()):
            if not config.parameters.get(key) and not (key == "gpt_model_path" and config.stated("encoder_model_path")):
                yield Found(model.file, f"parameter {key} is not set, and the model does not load without it")
        for key in missing(repository, model, config):
            yield Found(model.file, f"parameter {key} is gone, and NVIDIA's code wants it there, be it empty")
