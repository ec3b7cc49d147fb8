"""Tokenizer folders: there, whole, and of the same model as the engine."""

from collections.abc import Iterator

from forge.check.model import Config, EngineFolder, Kind, Model, Repository, TokenizerFolder
from forge.check.rules.rule import Found, Rule, Severity
from forge.repository.config import ROOT

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


def _path(repository: Repository) -> Iterator[Found]:
    for kind in HELD_BY:
        for model, config in repository.of(kind):
            stated = config.stated("tokenizer_dir")
            if not stated or repository.tokenizer(config) is not None:
                continue
            if stated.startswith((f"{ROOT}/", f"{repository.root}/")):
                yield Found(model.file, f"tokenizer_dir is {stated}: there is no such folder", needle=stated)
            elif not stated.startswith("/"):
                what = f"tokenizer_dir is {stated!r}, which is no folder here: the server would ask the hub for it, if it may"
                yield Found(model.file, what, "fill it with the path of a folder that the server sees", stated)


def _files(repository: Repository) -> Iterator[Found]:
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


def _template(repository: Repository) -> Iterator[Found]:
    told: set[str] = set()
    for _, _, found in folders(repository):
        if found.template is None or found.shown in told:
            continue
        told.add(found.shown)
        broken = found.template
        yield Found(f"{found.shown}/{broken.file}", f"the chat template cannot be read: {broken.why}", line=broken.line)


def _special(repository: Repository) -> Iterator[Found]:
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


def _vocabulary(repository: Repository) -> Iterator[Found]:
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


def _same(repository: Repository) -> Iterator[Found]:
    for chain in repository.chains:
        one, other = chain.preprocessing, chain.postprocessing
        if one is None or other is None or one.config is None or other.config is None:
            continue
        dirs = [config.stated("tokenizer_dir") for config in (one.config, other.config)]
        if all(dirs) and dirs[0].rstrip("/") != dirs[1].rstrip("/"):
            what = f"{one.folder} reads the tokenizer in {dirs[0]}, and {other.folder} that in {dirs[1]}"
            yield Found(other.file, what, needle=dirs[1])


RULES = (
    Rule(
        "tokenizer-path",
        Severity.ERROR,
        "the tokenizer's folder is not where the config says",
        "tokenizer_dir is opened by the server: inside a container it is the path there. What is no folder "
        "AutoTokenizer takes for a repository on the hub.",
        "OSError: Can't load tokenizer for '/forge/repository/_assets/m/tokenizer'\n"
        "TritonModelException: .../tokenizer/tokenizer.json is missing: this model reads fast tokenizers "
        "(tokenizer.json) only",
        "put the tokenizer's files there, tokenizer.json and tokenizer_config.json among them",
        _path,
    ),
    Rule(
        "tokenizer-files",
        Severity.ERROR,
        "the tokenizer's folder cannot be loaded",
        "AutoTokenizer reads tokenizer.json, or tokenizer_config.json and the files of the class that it names. A "
        "SentencePiece .model alone, a git-lfs pointer or a file cut short is no tokenizer.",
        "OSError: Can't load tokenizer for '...'. If you were trying to load it from "
        "'https://huggingface.co/models', make sure you don't have a local directory with the same name.\n"
        "Exception: expected value at line 1 column 1",
        "copy the checkpoint's tokenizer files whole, tokenizer.json and tokenizer_config.json among them",
        _files,
    ),
    Rule(
        "chat-template",
        Severity.WARNING,
        "the chat template cannot be read",
        "Conversations are made into a prompt by the template that comes with the tokenizer, in jinja2's sandbox. One that "
        "jinja2 cannot read makes no prompt: `forge chat`, `--chat` and /v1/chat/completions fail, plain prompts do not.",
        "jinja2.exceptions.TemplateSyntaxError: Unexpected end of template. Jinja was looking for the following tags: "
        "'endfor' or 'else'.",
        "take chat_template whole from the model's author, and build again",
        _template,
    ),
    Rule(
        "tokenizer-special",
        Severity.WARNING,
        "the tokenizer's special tokens are not the checkpoint's",
        "preprocessing sends the tokenizer's end id with every request, and the engine stops there and nowhere else. "
        "With another model's tokenizer, or a fine-tune's chat tokens, the answer runs on to max_tokens.",
        "no line says so: answers do not end, or end at once",
        "take tokenizer and checkpoint from one model, or correct eos_token in tokenizer_config.json",
        _special,
    ),
    Rule(
        "tokenizer-vocabulary",
        Severity.ERROR,
        "the tokenizer knows ids that the engine does not",
        "An id is a row of the embedding. Added tokens of a fine-tune whose embedding was not resized, or another "
        "model's tokenizer, point past its end.",
        "no line says so: the kernel reads past the embedding, and answers are noise",
        "take tokenizer and checkpoint from one model, or build from the checkpoint with the resized embedding",
        _vocabulary,
    ),
    Rule(
        "tokenizer-pair",
        Severity.WARNING,
        "preprocessing and postprocessing read different tokenizers",
        "tokenizer_dir is filled into both by itself. Ids made by one and read by the other are another text.",
        "no line says so: answers are noise",
        "fill both with one folder",
        _same,
    ),
)
