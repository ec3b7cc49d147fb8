"""Checkpoints from the Hugging Face hub, pinned to a commit and checked byte for byte."""

import errno
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

import msgspec
from msgspec import Struct, structs

from forge.build.sources import hub_token
from forge.build.sources.checkpoint_files import apart, check, selected, stated
from forge.build.sources.lookups import COMMIT, OutOfReachError, checkpoint, latest, make, named, recall, record, require_room
from forge.build.sources.source import Offer
from forge.errors import ForgeError, SourceError, StoreError
from forge.events import Progress
from forge.files import trees
from forge.files.safetensors import Tensor
from forge.schema.recipe import Lora
from forge.schema.values import Checkpoint, FileFact, Pinned, Source, SourceKind

T = TypeVar("T")
PUBLIC = "https://huggingface.co"
ATTEMPTS = 3
TIMEOUT = 15.0  # seconds for an answer about metadata
WATCH = 0.2  # seconds between looks at how far a download is
SLACK = 64 << 20  # bytes beside the files themselves: the library's notes, and what is written twice for a moment
ANSWERS = "text-generation"
"""The hub's word for models that continue a text."""
TEXTS = "datasets/"
"""What the hub's own addresses, and a pin's name, put before the id of a data set."""
DATASET = "dataset"
NETWORK = "check the network (proxy, HF_ENDPOINT) and run again"
_AGAIN = "run again: it is fetched anew; where it stays so, the hub's own copy is broken"
_UNREADABLE = (RecursionError, TypeError, AttributeError, LookupError, OverflowError, msgspec.DecodeError)
"""What huggingface_hub, or a decoder, ends in over an answer of another shape than the hub's."""
_SIZES = re.compile(
    r"file should be of size (?P<listed>\d+) but has size (?P<there>\d+) \((?:\(…\)[^/()]*/)?(?P<file>[^()]+)\)"
)
_CUT = re.compile(r"received (?P<there>\d+) bytes, expected (?P<listed>\d+)")
TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # what huggingface_hub itself takes for true


class _Listed(Struct, frozen=True):
    """One model in the hub's list, as far as forge reads it."""

    id: str
    config: object = None
    safetensors: object = None
    gated: object = False
    downloads: object = 0


class HubOrigin:
    """Pins, reads and fetches from a hub that speaks Hugging Face's API.

    ``home`` keeps what was learnt: pins by what was asked, and config.json by digest, so that a build whose steps are
    held goes on without a network. Tokens come from ``environ`` or what `hf auth login` left, and reach no text.
    """

    def __init__(self, home: Path, environ: Mapping[str, str], note: Callable[[str], None] = lambda _: None) -> None:
        self._home = home / "hub"
        self._environ = environ
        self._note = note
        self._endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or PUBLIC

    @cached_property
    def _token(self) -> str:
        """Looked for when the hub is asked, so that a token that cannot be used is in nobody's way before."""
        return hub_token.find(self._environ)

    def pin(self, source: Source, base: Path) -> Pinned:
        """The commit behind ``source.revision`` and its needed files; a commit that was pinned before asks nobody.

        Out of reach, the last answer for the same question holds, and is said aloud.
        """
        del base
        kind = apart(source) if isinstance(source, Lora) else ()  # a data set's address says already that it is one
        asked = msgspec.json.encode((self._endpoint, source.address, source.revision, source.allow_pickle, *kind))
        return latest(self._home / "pins", asked, source, lambda: self._look(source), self._note)

    def _look(self, source: Source) -> Pinned:
        self._online(source.address)

        def look() -> tuple[str, list[FileFact]]:
            from huggingface_hub import HfApi

            api = HfApi(endpoint=self._endpoint, token=self._token or False)
            kind, name = _repository(source.address)
            ask = api.dataset_info if kind == DATASET else api.model_info
            info = ask(name, revision=source.revision, files_metadata=True, timeout=TIMEOUT)
            if kind == DATASET and info.gated:  # everybody is told its files; a model's access shows when its config is read
                api.auth_check(name, repo_type=kind)
            facts = [
                FileFact(
                    str(file.rfilename),
                    file.size or 0,
                    f"sha256:{file.lfs.sha256}" if file.lfs else f"gitsha1:{file.blob_id}",
                )
                for file in info.siblings or ()
            ]
            return info.sha or "", facts

        commit, facts = self._ask(look, source.address, source.revision)
        if not COMMIT.fullmatch(commit):
            raise SourceError(f"the hub names no commit: {commit!a}", where=f"{self._endpoint}/{source.address}")
        wanted = selected(source, (fact.path for fact in facts), f"{source.address}@{commit[:12]}")
        files = tuple(sorted((fact for fact in facts if fact.path in wanted), key=lambda fact: fact.path))
        for fact in files:
            named(fact, f"{self._endpoint}/{source.address}")
        return Pinned(SourceKind.HUB, source.address, commit, files, f"{self._endpoint}/{source.address}")

    def search(self, word: str, limit: int) -> tuple[Offer, ...]:
        """Models whose name has ``word``, in one request, those before that are fetched most."""
        self._online(word)

        def look() -> tuple[Offer, ...]:
            from huggingface_hub.utils import (  # type: ignore[attr-defined]
                build_hf_headers,  # pyright: ignore[reportUnknownVariableType]
                get_session,
                hf_raise_for_status,
            )

            # Not by the library's own list_models, which asks five times more, for half a minute.
            wanted = {"pipeline_tag": ANSWERS, "sort": "downloads", "expand": ["config", "downloads", "gated", "safetensors"]}
            answer = get_session().get(
                f"{self._endpoint}/api/models",
                params=wanted | {"search": word, "limit": limit},
                headers=build_hf_headers(token=self._token or False),
                timeout=TIMEOUT,
            )
            hf_raise_for_status(answer)
            return tuple(map(_offer, msgspec.json.decode(answer.content, type=list[_Listed])[:limit]))

        return self._ask(look, f"models?search={word}", "main")

    def read(self, pinned: Pinned) -> Checkpoint:
        """config.json, or an adapter's, at the pinned commit; kept, so that it is asked for once."""
        fact = stated(pinned)
        folder = self._home / "configs" / named(fact, pinned.name)
        if not (folder / fact.path).is_file():
            self.fetch(structs.replace(pinned, files=(fact,)), folder, lambda _done, _total: None)
        return checkpoint((folder / fact.path).read_bytes(), f"{pinned.name}@{pinned.revision[:12]}/{fact.path}")

    def tensors(self, pinned: Pinned) -> tuple[Tensor, ...]:
        """By range requests for the headers alone; each file's are kept by its digest, so that they are asked for once."""
        files = (file for file in pinned.files if file.path.endswith(".safetensors"))
        return tuple(tensor for file in files for tensor in self._header(pinned, file))

    def _header(self, pinned: Pinned, file: FileFact) -> tuple[Tensor, ...]:
        folder, question = self._home / "headers", file.digest.encode()
        held = recall(folder, question, tuple[Tensor, ...]) if file.digest else None
        if held is not None:
            return held
        self._online(pinned.name)

        def look() -> tuple[Tensor, ...]:
            from huggingface_hub import HfApi

            said = HfApi(endpoint=self._endpoint, token=self._token or False).parse_safetensors_file_metadata(
                pinned.name, file.path, revision=pinned.revision, timeout=TIMEOUT
            )
            return tuple(Tensor(name, str(each.dtype), tuple(each.shape)) for name, each in said.tensors.items())

        found = self._ask(look, pinned.name, pinned.revision)
        record(folder, question, found)
        return found

    def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:
        """The library resumes and retries broken connections but checks no digests; that is done here, file by file."""
        total = sum(file.size for file in pinned.files)
        require_room(total, into)  # better said before an hour of downloading than after it
        failures: list[BaseException] = []

        def bring() -> None:
            try:
                self._bring(pinned, into)
            except BaseException as error:  # noqa: BLE001 - carried to the thread that waits, and raised there
                failures.append(error)

        # Ctrl-C must not wait for a shard of gigabytes: the download has a thread that ends with the process.
        worker = threading.Thread(target=bring, name="hub-download", daemon=True)
        worker.start()
        while worker.is_alive():
            worker.join(WATCH)
            here = trees.size_below(into)
            if here > total + SLACK:
                raise SourceError("a file goes on beyond what the hub listed", where=pinned.name, hint=_AGAIN)
            progress(min(here, total), total)
        if failures:
            raise failures[0]

    def _bring(self, pinned: Pinned, into: Path) -> None:
        self._online(pinned.name)
        make(into)
        for fact in pinned.files:

            def download(fact: FileFact = fact) -> str:
                from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]

                kind, name = _repository(pinned.name)
                return hf_hub_download(
                    name,
                    fact.path,
                    repo_type=kind,
                    revision=pinned.revision,
                    local_dir=into,
                    endpoint=self._endpoint,
                    token=self._token or False,
                )

            self._ask(download, pinned.name, pinned.revision)
            check(into / fact.path, fact, f"{pinned.name}@{pinned.revision[:12]}")
        shutil.rmtree(into / ".cache", ignore_errors=True)  # the library's notes about what it downloaded

    def _online(self, name: str) -> None:
        for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            if self._environ.get(switch, "").upper() in TRUE:
                raise OutOfReachError(
                    f"{switch} is set and {name} is not held",
                    where=self._endpoint,
                    hint=f"unset {switch} for one build with a network; what that brings is held from then on",
                )

    def _ask(self, question: Callable[[], T], name: str, revision: str, attempts: int = ATTEMPTS) -> T:
        """Ask the hub, again where it stumbled; whatever the library raises comes out as one of forge's errors."""
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
        from huggingface_hub.utils.logging import set_verbosity

        disable_progress_bars()
        set_verbosity(logging.ERROR)
        for attempt in range(1, attempts + 1):
            try:
                return question()
            except ForgeError:
                raise
            except Exception as error:  # noqa: BLE001 - the transport under the library changes with its version
                meaning = self._meaning(_root(error), name, revision)
                if attempt == attempts or not isinstance(meaning, OutOfReachError):
                    raise meaning from None  # the cause holds request headers
                time.sleep(attempt)
        raise AssertionError("the last attempt returns or raises")

    def _meaning(self, error: BaseException, name: str, revision: str) -> ForgeError:
        from huggingface_hub import errors

        where = f"{self._endpoint}/{name}"
        if isinstance(error, errors.HfHubHTTPError):
            return self._refusal(error, error.response.status_code, name, revision)
        if isinstance(error, (errors.SafetensorsParsingError, *_UNREADABLE)):
            header = isinstance(error, errors.SafetensorsParsingError)
            what = "the header of a safetensors file" if header else f"the hub's answer ({self._clean(error)})"
            return SourceError(f"{what} cannot be read", where=where, hint=_AGAIN)
        if isinstance(error, errors.HFValidationError):
            return SourceError(f"{name!r} is no {_noun(name)} id", where=where, hint="write owner/name as the hub shows it")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreError("the disk is full", where=str(self._home), hint="free space, or run `forge cache gc`")
        if isinstance(error, PermissionError):
            return StoreError(f"cannot write: {error.strerror}", where=str(error.filename or self._home))
        short = _short(str(error))
        what = short or f"the hub is out of reach ({self._clean(error)})"
        return OutOfReachError(what, where=where, hint=_AGAIN if short else NETWORK)

    def _refusal(self, error: Exception, status: int, name: str, revision: str) -> ForgeError:
        from huggingface_hub import errors

        where = f"{self._endpoint}/{name}"
        login = "run `hf auth login` or set HF_TOKEN"
        reader = "your token's account may read it" if self._token else f"if it is private, {login}"
        licence = f"accept it at {where}, " + ("with the account of your token" if self._token else f"then {login}")
        if status >= 500 or status in (408, 429):
            return OutOfReachError(f"the hub answers {status}", where=where, hint=NETWORK)
        if status == 401 and self._token and "invalid" in str(error).lower():
            return SourceError("the hub refuses the token", where=where, hint=login)
        answers = (
            # A child of RepositoryNotFoundError: it comes first.
            (errors.GatedRepoError, "gated: its licence has to be accepted", licence),
            (
                errors.RepositoryNotFoundError,
                f"there is no such {_noun(name)} on the hub, or it is private",
                f"check the spelling (owner/name); {reader}",
            ),
            (errors.RevisionNotFoundError, f"there is no revision {revision!r}", f"see {where}/commits/main"),
            (errors.EntryNotFoundError, f"a pinned file is gone from {revision[:12]}", "run `forge lock --upgrade`"),
        )
        for kind, what, hint in answers:
            if isinstance(error, kind):
                return SourceError(what, where=where, hint=hint)
        if status in (401, 403):
            return SourceError(f"the hub says {status}: no access", where=where, hint=login)
        return SourceError(f"the hub says {status}: {self._clean(error)}", where=where)

    def _clean(self, error: BaseException) -> str:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return text.replace(self._token, "***") if self._token else text


def _offer(listed: _Listed) -> Offer:
    """What the hub's list says of one model; what it leaves out, or says in another shape, is not known."""
    said, counted = _part(listed.config, "architectures"), _part(listed.safetensors, "parameters")
    architectures = tuple(map(str, cast("list[object]", said))) if isinstance(said, list) else ()
    tensors = cast("dict[str, object]", counted) if isinstance(counted, dict) else {}
    sizes = {kind: count for kind, count in tensors.items() if isinstance(count, int)}
    downloads = listed.downloads if isinstance(listed.downloads, int) else 0
    return Offer(listed.id, architectures, sizes, bool(listed.gated), downloads)


def _part(said: object, key: str) -> object:
    return cast("dict[str, object]", said).get(key) if isinstance(said, dict) else None


def _repository(name: str) -> tuple[str | None, str]:
    """The hub's kind and id of what a pin names; the kind of a model is None there."""
    return (DATASET, name.removeprefix(TEXTS)) if name.startswith(TEXTS) else (None, name)


def _noun(name: str) -> str:
    return "data set" if name.startswith(TEXTS) else "model"


def _root(error: BaseException) -> BaseException:
    """The library hides what happened in a LocalEntryNotFoundError about a cache that forge does not use."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _short(said: str) -> str:
    """What is said of a file that came shorter, or longer, than the hub listed it; empty for another error.

    The words are huggingface_hub's own consistency check, and those of its transport when a body ends early.
    """
    if found := _SIZES.search(said):
        size, wanted, name = (int(found["there"]), int(found["listed"]), found["file"])
        way = "shorter" if size < wanted else "longer"
        return f"{name} is {way} than the hub listed ({size} of {wanted} bytes)"
    if found := _CUT.search(said):
        return f"a file was cut short on its way ({found['there']} of {found['listed']} bytes came)"
    return ""
