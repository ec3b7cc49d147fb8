"""Reads a model repository from disk into the values that ``forge.check.rules`` look at. It changes nothing."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec

from forge.build.sources.checkpoint_files import fault
from forge.check.config import guess, read as read_config
from forge.check.model import (
    SENTENCE_PIECE,
    BrokenTemplate,
    EngineFolder,
    Fault,
    Kind,
    Model,
    Repository,
    TokenizerFolder,
    kind,
    number,
    stated_path,
    table,
)
from forge.check.rules.adapters import KEY as ADAPTERS
from forge.check.rules.engine import PATHS as ENGINES
from forge.check.rules.terms import GUIDE
from forge.check.rules.vllm import LORAS, loras
from forge.client.chat_template import unreadable
from forge.client.lora import array
from forge.errors import InferenceError
from forge.files import texts
from forge.protobuf import Unreadable
from forge.repository.config import CONFIG, ROOT
from forge.schema import adapters
from forge.schema.adapters import AdapterFolder, Row, rows
from forge.schema.manifest import Manifest
from forge.schema.values import ASSETS

_WEIGHTS = (".safetensors", ".bin", ".engine", ".json", ".model", ".npz", ".pt")
"""Endings of files that are looked into for git-lfs pointers, and for what is cut short."""
_ARGUMENTS = ("/model.yaml", "/model.yml", "/model.json")
"""What a model of llmapi or of vLLM is told beside its config: YAML, of which JSON is a part."""
_SOURCES = (".py", ".yaml", ".yml", "model.json", LORAS)
_LARGEST = 1 << 20
"""Bytes of a model's own source above which it is not read."""
_SPECIAL = ("bos_token", "eos_token", "pad_token")


def read(place: Path, held: Manifest | None, only: frozenset[str] = frozenset()) -> Repository:
    """The repository in the folder ``place``; ``held`` is its manifest, where forge made it.

    With ``only`` nothing but these folders is looked at: what others hold costs nothing then.
    """
    everything = sorted(only or (entry.name for entry in place.iterdir() if entry.is_dir()))
    folders = [name for name in everything if not name.startswith(".")]
    listed = {folder for one in (held.models if held else ()) for folder in one.roles.values()}
    names = [name for name in folders if (place / name / CONFIG).is_file() or name in listed]
    models = tuple(_model(place / name) for name in names)
    find = _Paths(place, held.root if held else "")
    return Repository(
        root=str(place),
        models=models,
        engines={at: _engine(there, find) for at in _engine_paths(str(place), models) if (there := find.find(at))},
        adapters={at: _adapters(there) for at in _stated(models, (ADAPTERS,)) if (there := find.find(at))},
        loras=dict(_loras(str(place), models, find)),
        guides=frozenset(stated for stated in _stated(models, (GUIDE,)) if find.file(stated) is not None),
        tokenizers={at: _tokenizer(there, find) for at in _stated(models, ("tokenizer_dir",)) if (there := find.find(at))},
        strays=tuple(name for name in everything if name not in names),
        faults=tuple(_faults(place, folders)),
        manifest=held,
    )


class _Paths:
    """Finds what a config's path leads to, from the host: the server may see the repository somewhere else."""

    def __init__(self, place: Path, before: str) -> None:
        self._place = place
        self._roots = tuple(root for root in (ROOT, str(place), before) if root)

    def find(self, stated: str) -> Path | None:
        """The folder; None where nothing is found."""
        if not stated.startswith("/"):
            return None
        for root in self._roots:
            if stated == root or stated.startswith(f"{root}/"):
                found = self._place / stated.removeprefix(root).lstrip("/")
                return found if found.is_dir() else None
        if Path(stated).is_dir():
            return Path(stated)
        return self._mounted(Path(stated).parts)

    def file(self, stated: str) -> Path | None:
        """The file; None where nothing is found."""
        folder = self.find(stated.rpartition("/")[0])
        found = folder / stated.rpartition("/")[2] if folder else None
        return found if found and found.is_file() else None

    def _mounted(self, parts: tuple[str, ...]) -> Path | None:
        """As a container sees it: the repository is mounted somewhere, and the end of the path is inside of it."""
        for at in range(1, len(parts)):
            found = self._place.joinpath(*parts[at:])
            if ".." not in parts and found.is_dir():
                return found
        return None

    def shown(self, found: Path) -> str:
        """Relative to the repository where it is inside."""
        return found.relative_to(self._place).as_posix() if found.is_relative_to(self._place) else str(found)


def _model(folder: Path) -> Model:
    versions = tuple(sorted((entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name.isdecimal()), key=int))
    sources = _sources(folder)
    try:
        text = texts.content(folder / CONFIG, _LARGEST).decode()
    except (texts.Odd, UnicodeDecodeError) as error:
        why = str(error) if isinstance(error, texts.Odd) else "it is not UTF-8"
        return Model(folder.name, "", None, why, versions, sources)
    yaml = next((text for path, text in sources.items() if path.endswith(_ARGUMENTS)), "")
    try:
        return Model(folder.name, text, read_config(text), "", versions, sources, _arguments(yaml))
    except Unreadable as error:
        return Model(folder.name, text, guess(text), str(error), versions, sources, _arguments(yaml))


def _sources(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in sorted(path for ending in _SOURCES for path in folder.rglob(f"*{ending}")):
        path = file.relative_to(folder)
        if ASSETS in path.parts:  # a checkpoint brings code of its own
            continue
        if file.is_file() and file.stat().st_size <= _LARGEST:
            with suppress(texts.Odd):
                found[path.as_posix()] = texts.content(file).decode(errors="replace")
    return found


def _arguments(yaml: str) -> Mapping[str, object]:
    """What model.yaml says; nothing where it is no YAML."""
    with suppress(msgspec.DecodeError):
        return table(msgspec.yaml.decode(yaml)) if yaml else {}
    return {}


def _stated(models: Iterable[Model], keys: Iterable[str]) -> Iterator[str]:
    """Every path that configs state under ``keys``, once."""
    configs = [model.config for model in models if model.config is not None]
    yield from dict.fromkeys(value for config in configs for key in keys if (value := config.stated(key)))


def _engine_paths(root: str, models: Iterable[Model]) -> Iterator[str]:
    yield from _stated(models, ENGINES)
    for model in models:
        named = model.arguments.get("model")
        if kind(model) is Kind.VLLM and (path := stated_path(root, model, named)):
            yield path
        if kind(model) is Kind.LLMAPI and isinstance(named, str) and named.startswith("/"):
            yield named


def _adapters(folder: Path) -> AdapterFolder:
    tasks: dict[str, tuple[Row, ...]] = {}
    broken: dict[str, str] = {}
    for each in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        try:
            tasks[each.name] = rows(*array(each / adapters.ARRAYS[1]))
        except (InferenceError, ValueError) as error:
            tasks[each.name], broken[each.name] = (), getattr(error, "what", str(error))
    return AdapterFolder(tasks, texts.document(folder.parent / adapters.TASKS)[0], broken)


def _loras(root: str, models: Iterable[Model], paths: _Paths) -> Iterator[tuple[str, Mapping[str, object]]]:
    for model in models:
        for stated in loras(model).values():
            if (path := stated_path(root, model, stated)) and (found := paths.find(path)):
                yield path, texts.document(found / adapters.CONFIG)[0]


def _files(folder: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_size for entry in folder.iterdir() if entry.is_file()}


def _engine(found: Path, paths: _Paths) -> EngineFolder:
    config, broken = texts.document(found / "config.json")
    files = _files(found)
    if "config.json" not in files:
        broken = "there is no config.json"
    limits = table(config.get("build_config")) or texts.document(found / "build_config.json")[0]
    return EngineFolder(paths.shown(found), files, config, limits, broken)


def _tokenizer(found: Path, paths: _Paths) -> TokenizerFolder:
    files = _files(found)
    whole = [name for name in _DOCUMENTS if name in files and not _wrong(found / name)]
    read = {name: texts.document(found / name) for name in whole}
    broken = {name: why for name, (_, why) in read.items() if why}
    said = {name: held for name, (held, _) in read.items()}
    words = said.get("tokenizer.json", {})
    if "tokenizer.json" in whole and "tokenizer.json" not in broken and "model" not in words:
        broken["tokenizer.json"] = "it is no tokenizer's: it has no model"
    vocabulary = _vocabulary(words)
    settings = {**said.get("special_tokens_map.json", {}), **said.get("tokenizer_config.json", {})}
    ids = {name: vocabulary[text] for name in _SPECIAL if (text := _text(settings.get(name))) in vocabulary}
    generation = said.get("generation_config.json", {})
    largest = max(vocabulary.values(), default=-1)
    strips = _strips(words.get("decoder")) if words else any(name.endswith(SENTENCE_PIECE) for name in files)
    bad = unreadable(found, said.get("tokenizer_config.json", {}))
    template = BrokenTemplate(bad.file, bad.line, bad.why) if bad else None
    return TokenizerFolder(paths.shown(found), files, settings, generation, broken, ids, largest, strips, template)


_DOCUMENTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def _strips(decoder: object) -> bool:
    """Whether a tokenizer.json's decoder drops a blank at the start: Metaspace does, and Strip where it cuts at the left."""
    stated = table(decoder)
    if stated.get("type") == "Sequence":
        members = stated.get("decoders")
        return any(map(_strips, cast("list[object]", members) if isinstance(members, list) else ()))
    if stated.get("type") == "Strip":
        return stated.get("content") == " " and number(stated.get("start")) > 0
    return stated.get("type") == "Metaspace" and stated.get("prepend_scheme") != "never"


def _vocabulary(words: Mapping[str, object]) -> Mapping[str, int]:
    """Every token of a tokenizer.json with its id, added ones included."""
    stated = table(words.get("model")).get("vocab")
    found: dict[str, int] = {}
    if isinstance(stated, dict):
        found.update((text, number) for text, number in table(cast("object", stated)).items() if isinstance(number, int))
    elif isinstance(stated, list):  # Unigram: pieces with their scores, in the order of their ids
        pieces = enumerate(cast("list[object]", stated))
        found.update((str(cast("list[object]", piece)[0]), at) for at, piece in pieces if isinstance(piece, list) and piece)
    added = words.get("added_tokens")
    for token in map(table, cast("list[object]", added) if isinstance(added, list) else ()):
        if isinstance(token.get("id"), int):
            found[str(token.get("content"))] = cast("int", token["id"])
    return found


def _text(token: object) -> str:
    """A special token, stated as a text or as an AddedToken's object."""
    stated = table(token).get("content", token)
    return stated if isinstance(stated, str) else ""


def _faults(place: Path, folders: Iterable[str]) -> Iterator[Fault]:
    for folder in folders:
        for file in sorted((place / folder).rglob("*")):
            if file.name.endswith(_WEIGHTS) and file.is_file() and (wrong := _wrong(file)):
                yield Fault(file.relative_to(place).as_posix(), wrong)


def _wrong(file: Path) -> str:
    """Why a file is not what its name promises, as far as its first bytes tell."""
    try:
        return fault(file)
    except ValueError:  # a pointer whose size is no number
        return "a git-lfs pointer stands there, and not a whole one"
