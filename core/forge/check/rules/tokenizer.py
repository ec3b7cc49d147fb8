"""Tokenizer folders: there, whole, and of the same model as the engine."""

from collections.abc import Iterator

from forge.check.model import Config, EngineFolder, Kind, Model, Repository, TokenizerFolder
from forge.check.rules.rule import Found

HELD_BY = (Kind.PREPROCESSING, Kind.POSTPROCESSING, Kind.BLS)
FAST = "tokenizer.json"
SLOW = (("vocab.json", "merges.txt"), ("vocab.txt",), ("tokenizer.model",), ("spiece.model",), ("sentencepiece.bpe.model",))
"""Files of which AutoTokenizer makes a tokenizer together with tokenizer_config.json, where there is no tokenizer.json."""
_FORGES_OWN = "reads fast tokenizers"


def folders(repository: Repository) -> Iterator[tuple[Model, Config, TokenizerFolder]]:
    """Every model with its tokenizer, where that was found."""
    for kind in HELD_BY:
        for model, config in repository.of(kind):
            if (found := repository.tokenizer(config)) is not None:
                yield model, config, found


def tokenizer_path(repository: Repository) -> Iterator[Found]:
    for kind in HELD_BY:
        for model, config in repository.of(kind):
            stated = config.stated("tokenizer_dir")
            if not stated or repository.tokenizer(config) is not None:
                continue
            if repository.holds(stated):
                yield Found(model.file, f"tokenizer_dir is {stated}: there is no such folder", needle=stated)
            elif not stated.startswith("/"):
                what = f"tokenizer_dir is {stated!r}, which is no folder here: the server would ask the hub for it, if it may"
                yield Found(model.file, what, "fill it with the path of a folder that the server sees", stated)


def tokenizer_files(repository: Repository) -> Iterator[Found]:
    told: set[str] = set()
    for model, _, found in folders(repository):
        if found.shown in told:
            continue
        told.add(found.shown)
        for file, wrong in found.broken.items():
            yield Found(f"{found.shown}/{file}", wrong)
        if found.broken or FAST in found.files:
            continue
        if _FORGES_OWN in model.sources.get(model.code, ""):
            yield Found(found.shown, f"there is no {FAST}, and forge's own {model.folder} reads nothing else")
        elif not any(all(name in found.files for name in names) for names in SLOW):
            bare = next((name for name in found.files if name.endswith((".model", ".spm"))), "")
            what = f"{bare} alone is no tokenizer folder" if bare else "no file in it is a tokenizer's"
            yield Found(found.shown, what)
        elif "tokenizer_config.json" not in found.files:
            yield Found(found.shown, "a bare SentencePiece .model or vocabulary: there is no tokenizer_config.json")


def chat_template(repository: Repository) -> Iterator[Found]:
    told: set[str] = set()
    for _, _, found in folders(repository):
        if found.template is None or found.shown in told:
            continue
        told.add(found.shown)
        broken = found.template
        yield Found(f"{found.shown}/{broken.file}", f"the chat template cannot be read: {broken.why}", line=broken.line)


def tokenizer_special(repository: Repository) -> Iterator[Found]:
    for found, engine in _pairs(repository):
        for name in ("eos_token_id", "bos_token_id"):
            wanted = _ids(found.generation.get(name)) or _ids(engine.model.get(name))
            own = found.ids.get(name.removesuffix("_id"))
            if own is not None and wanted and own not in wanted:
                said = f"{own} to the tokenizer, and {' or '.join(map(str, wanted))} to the checkpoint"
                yield Found(f"{found.shown}/tokenizer_config.json", f"{name.removesuffix('_id')} is {said}")


def _ids(value: object) -> tuple[int, ...]:
    """One id, or several; none where nothing is stated."""
    if isinstance(value, list | tuple):
        return tuple(one for each in value if isinstance(each, int) for one in _ids(each))  # pyright: ignore[reportUnknownVariableType]
    return (value,) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else ()


def tokenizer_vocabulary(repository: Repository) -> Iterator[Found]:
    for found, engine in _pairs(repository):
        if engine.vocabulary and found.largest >= engine.vocabulary:
            what = f"it has ids up to {found.largest}, and {engine.shown} a vocabulary of {engine.vocabulary}"
            yield Found(f"{found.shown}/{FAST}", what)


def _pairs(repository: Repository) -> Iterator[tuple[TokenizerFolder, EngineFolder]]:
    """Each tokenizer beside the engine that reads its ids, once."""
    told: set[tuple[str, str]] = set()
    for chain in repository.chains:
        if chain.engine is None or chain.engine.config is None:
            continue
        engine = repository.engine(chain.engine.config)
        for model in (chain.preprocessing, chain.postprocessing):
            found = repository.tokenizer(model.config) if model is not None and model.config else None
            if found is not None and engine is not None and (found.shown, engine.shown) not in told:
                told.add((found.shown, engine.shown))
                yield found, engine


def tokenizer_pair(repository: Repository) -> Iterator[Found]:
    for chain in repository.chains:
        one, other = chain.preprocessing, chain.postprocessing
        if one is None or other is None or one.config is None or other.config is None:
            continue
        dirs = [config.stated("tokenizer_dir") for config in (one.config, other.config)]
        if all(dirs) and dirs[0].rstrip("/") != dirs[1].rstrip("/"):
            what = f"{one.folder} reads the tokenizer in {dirs[0]}, and {other.folder} that in {dirs[1]}"
            yield Found(other.file, what, needle=dirs[1])
