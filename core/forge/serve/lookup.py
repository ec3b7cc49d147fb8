"""A served model to speak to: where it stands, what it is called there, and what its recipe wants asked."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec
from msgspec import Struct, structs
from msgspec.structs import replace

from forge.client.lora import LoraTask
from forge.client.types import Request
from forge.errors import InferenceError, ServerError, meant
from forge.files import texts, trees
from forge.repository import publish
from forge.repository.config import ROOT
from forge.schema.adapters import BETWEEN, FOLDER, TASKS
from forge.schema.manifest import Manifest, PublishedModel
from forge.schema.spelling import is_folder_name
from forge.schema.values import RuntimeKind
from forge.serve.server_types import Running, stop_line

_NUMBERED = (RuntimeKind.ENGINE, RuntimeKind.LLMAPI)
"""Runtimes that know adapters by numbers."""


class Target(Struct, frozen=True):
    """A served model to speak to: where, under which Triton name, and what its recipe wants asked. ``lora`` is the adapter that
    it is asked with, empty for none."""

    address: str
    model: PublishedModel
    repository: Path
    lora: str = ""

    @property
    def named(self) -> str:
        """Its name, with its adapter's where it is asked with one."""
        return f"{self.model.name}{BETWEEN}{self.lora}" if self.lora else self.model.name

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that it can be asked with, by name; what no recipe could have named is none of forge's."""
        folder = self.repository / self.model.asset(FOLDER)
        if self.model.runtime in _NUMBERED:
            names = set(self._tasks)
        else:
            names = {each.name for each in folder.iterdir()} if folder.is_dir() else set[str]()
        return tuple(sorted(filter(is_folder_name, names)))

    @property
    def _tasks(self) -> dict[str, int]:
        """Adapters by name -> their numbers, where TensorRT-LLM serves it."""
        said, _ = texts.document(self.repository / self.model.asset(TASKS))
        return {name: task for name, task in said.items() if isinstance(task, int)}

    @property
    def lora_task(self) -> LoraTask | None:
        """The adapter that it is asked with as TensorRT-LLM knows it; None where there is none, and for other runtimes."""
        if not self.lora or self.model.runtime not in _NUMBERED:
            return None
        task, folder = self._tasks[self.lora], self.model.asset(FOLDER)
        if self.model.runtime is RuntimeKind.ENGINE:
            return LoraTask(task, self.repository / folder / str(task))
        contained = self.model.serving is not None and self.model.serving.contained
        place = f"{ROOT if contained else self.repository}/{folder}/{self.lora}"
        return LoraTask(task, self.repository / folder / self.lora, place=place)

    @property
    def tokenizer(self) -> Path:
        """Its folder; llmapi and vLLM read the tokenizer out of the checkpoint itself."""
        kind = "model" if self.model.runtime in (RuntimeKind.LLMAPI, RuntimeKind.VLLM) else "tokenizer"
        return self.repository / self.model.asset(kind)

    @property
    def ends(self) -> tuple[str, ...]:
        """End tokens of the checkpoint that NVIDIA's preprocessing does not know: it sends the tokenizer's own and no other.
        forge's own sends them all, and llmapi's model reads generation_config.json by itself."""
        if self.model.runtime is not RuntimeKind.ENGINE:
            return ()
        return further(self.tokenizer, self.repository / self.model.asset("checkpoint"))

    def request(self, prompt: str) -> Request:
        """A request with the recipe's sampling and patience."""
        wanted = self.model.sampling
        return Request(
            model=self.model.front,
            prompt=prompt,
            **structs.asdict(wanted),
            ends=self.ends,
            num_draft_tokens=self.model.num_draft_tokens,
            lora=self.lora,
            lora_task=self.lora_task,
            first_seconds=self.model.limits.max_first_seconds,
            silent_seconds=self.model.limits.max_silent_seconds,
        )


def further(folder: Path, checkpoint: Path) -> tuple[str, ...]:
    """Texts of the end tokens that a checkpoint states and the tokenizer in ``folder`` does not call its own: those of
    generation_config.json beside it; where that states none, those of config.json in ``checkpoint``, as transformers does."""
    config, _ = texts.document(checkpoint / "config.json")
    ids = _ids(texts.document(folder / "generation_config.json")[0]) or _ids(config) or _ids(_object(config.get("text_config")))
    settings, _ = texts.document(folder / "tokenizer_config.json")
    own = settings.get("eos_token")
    named = _object(own).get("content", own)
    return tuple(text for text in dict.fromkeys(_texts(folder, settings, ids)) if text != named)


def _texts(folder: Path, settings: Mapping[str, object], ids: list[int]) -> list[str]:
    """Of tokens that were added to a vocabulary: such a text is one token wherever it stands."""
    marks = _object(settings.get("added_tokens_decoder"))
    known = {name: text for name, mark in marks.items() if isinstance(text := _object(mark).get("content"), str)}
    if any(str(each) not in known for each in ids):  # older settings do not say
        with suppress(texts.Odd, *texts.BROKEN):
            added = msgspec.json.decode(texts.content(folder / "tokenizer.json"), type=_Tokenizer).added_tokens
            known = {str(each.id): each.content for each in added} | known
    return [known[str(each)] for each in ids if str(each) in known]


class _Added(msgspec.Struct):
    id: int
    content: str


class _Tokenizer(msgspec.Struct):
    added_tokens: tuple[_Added, ...] = ()


def _ids(stated: Mapping[str, object]) -> list[int]:
    given = stated.get("eos_token_id")
    listed = cast("list[object]", given) if isinstance(given, list) else [given]
    return [each for each in listed if isinstance(each, int)]


def _object(stated: object) -> dict[str, object]:
    return cast("dict[str, object]", stated) if isinstance(stated, dict) else {}


_NONE = "start one: `forge serve`"
_DOWN = "ask again in some seconds; `forge status` says how it is, `forge logs` more"


class StrangerError(ServerError):
    """The model is served, and another program answers at its server's port."""


def running_on(place: str, servers: Sequence[Running]) -> Running:
    """The server of a repository, alone or with others; ServerError that names the repositories that have one."""
    for server in servers:
        if place in server.repositories:
            return server
    others = ", ".join(other for server in servers for other in server.repositories)
    hint = f"servers run on {others}: name one with --repository" if others else _NONE
    absent = "" if Path(place).is_dir() else f": {texts.no_folder(Path(place)) or 'there is no such folder'}"
    raise ServerError(f"no server runs on this repository{absent}", where=place, hint=hint)


def offered(servers: Iterable[Running]) -> tuple[str, ...]:
    """The names of all that ``servers`` offer, in order."""
    places = (Path(place) for server in servers for place in server.repositories)
    return tuple(sorted({model.name for place in places for model in publish.inventory(place).models}))


def served(name: str, servers: Sequence[Running]) -> Target:
    """The model of that name among what ``servers`` offer, alone or with an adapter of its own (``MODEL:ADAPTER``).

    ServerError where no server runs, InferenceError where none has it.
    """
    wanted, known = name.partition(BETWEEN), list[str]()
    for server in servers:
        for place in map(Path, server.repositories):
            for model in publish.inventory(place).models:
                if model.name == wanted[0] and server.down:
                    raise ServerError(server.down, where=str(place), hint=_DOWN)
                if model.name == wanted[0] and server.stranger:
                    raise StrangerError(
                        server.stranger, where=str(place), hint=f"`{stop_line(place)}`, and serve it at other ports"
                    )
                if model.name == wanted[0]:
                    return adapted(Target(server.ports.at(server.ports.grpc), model, place), wanted[2])
                known.append(model.name)
    if not servers:
        raise ServerError("no server is running", hint="start one: `forge serve --detach`")
    hint = f"{meant(wanted[0], known)} offered: {', '.join(known) or 'nothing'}".strip()
    raise InferenceError(f"no running server offers {wanted[0]!r}", hint=hint)


def adapted(target: Target, lora: str) -> Target:
    """The same model with one of its adapters; InferenceError where it has none of that name."""
    if lora and lora not in target.adapters:
        held = ", ".join(target.adapters)
        hint = (
            f"{meant(lora, target.adapters)} its adapters: {held}".strip()
            if held
            else "it was built without any: [[lora]] in its recipe names them"
        )
        raise InferenceError(f"{target.model.name} has no adapter {lora!r}", hint=hint)
    return replace(target, lora=lora)


class Listed(Struct, frozen=True):
    """One published model. ``models`` is role -> folder, ``size`` bytes in the repository, ``served`` a gRPC address."""

    name: str
    runtime: RuntimeKind
    prefix: str
    models: Mapping[str, str]
    assets: str
    size: int
    key: str
    served: str = ""


def listed(place: Path, held: Manifest, servers: Iterable[Running]) -> tuple[Listed, ...]:
    """Every model of the repository at ``place``; ``servers`` are those that run."""
    running = tuple(servers)
    return tuple(_listed(place, model, running) for model in held.models)


def offering(place: Path, model: PublishedModel, servers: Iterable[Running]) -> Running | None:
    """The server that offers ``model`` out of this repository."""
    fits = (one for one in servers if str(place) in one.repositories and model.front in one.models)
    return next(fits, None)


def _listed(place: Path, model: PublishedModel, servers: tuple[Running, ...]) -> Listed:
    server = offering(place, model, servers)
    return Listed(
        model.name,
        model.runtime,
        model.prefix,
        {str(role): folder for role, folder in model.roles.items()},
        model.assets,
        size(place, model),
        model.entry,
        server.ports.at(server.ports.grpc) if server else "",
    )


def size(place: Path, model: PublishedModel) -> int:
    """Bytes of its folders in the repository."""
    folders = [place / folder for folder in model.folders if (place / folder).is_dir()]
    return sum(item.status.st_size for folder in folders for item in trees.walk(folder) if item.is_file)
