"""Whatever stands in a file's place, every reader of files that people write ends in forge's own error, and soon."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

import fake_triton
from fake_wiring import FakeWiring, World
from forge.api.wiring import Wiring
from forge.bench import options as bench_options
from forge.bench.benchmark import Bench, Clocks
from forge.build import resolve
from forge.build.builder import Builder
from forge.build.resolve import Resolver
from forge.build.sources.folder import FolderOrigin
from forge.build.sources.hub import HubOrigin
from forge.check import repository_reader as reading
from forge.cli import main
from forge.client.chat_template import ChatTemplate
from forge.errors import (
    BenchError,
    ForgeError,
    InferenceError,
    LockError,
    RecipeError,
    RepositoryError,
    SourceError,
    StepError,
    StoreError,
)
from forge.files import texts
from forge.repository import publish
from forge.schema import manifest
from forge.schema.values import CallPatch, FileFact, Pinned, Ports, Source, SourceKind, VerifyTable
from forge.store import tenants
from forge.store.artifact import IMAGE, noted
from forge.store.store import Store
from forge.trtllm import patches
from forge.twin.checkpoint import read_json
from forge.twin.faults import CheckpointFault
from forge.verify import transcripts, verify
from forge.verify.verify import VerifyOptions
from skeleton_kit import load

LONG = 120.0
"""Seconds that no reader is meant to take, on any machine."""
HUGE = 1 << 40
RECIPE = 'name = "tiny"\nfamily = "llama"\n[source]\npath = "checkpoint"\n[runtime]\nkind = "twin"\n'
Put = Callable[[Path], object]


def huge(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(HUGE)


def unreadable(file: Path) -> None:
    file.write_text("{}")
    file.chmod(0)


ODD: dict[str, Put] = {
    "not UTF-8": lambda file: file.write_bytes(b'{"name": "\xff\xfe"}'),
    "a folder": lambda file: file.mkdir(),
    "a pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "huge": huge,
    "a link to itself": lambda file: file.symlink_to(file.name),
    "no permission": unreadable,
    "deep": lambda file: file.write_text("a = " * file.name.endswith(".toml") + '{"a":' * 100_000),
}
PLAIN_TEXT = frozenset(ODD) - {"deep"}
"""To a text that is not parsed where it is read nothing is too deep."""


@dataclass(frozen=True)
class Reader:
    """Reads the file ``name`` of a folder, and ends in one of ``families`` where it is one of ``odd``."""

    name: str
    read: Callable[[Path], object]
    families: tuple[type[Exception], ...]
    odd: frozenset[str] = frozenset(ODD)


def taken_in(folder: Path) -> Resolver:
    return Resolver(Store(folder / "store", clock=lambda: 0.0), Wiring(folder, {}, print), folder, print)


def locked(file: Path) -> object:
    recipe = file.with_name("tiny.toml")
    recipe.write_text(RECIPE)
    return taken_in(file.parent).resolve(recipe, locked=True)


def shown(file: Path) -> object:
    """By the command line: click itself refuses folders and what may not be read."""
    told = CliRunner().invoke(main, ["bench", "page", str(file)])
    assert told.exit_code in (2, BenchError.exit_code), told.output
    assert str(file) in told.output.replace("\n", "")
    raise BenchError(told.output, where=str(file), hint=told.output)


def own_dockerfile(file: Path) -> object:
    """As a recipe for an engine meets it: its Dockerfile is a part of what is planned."""
    recipe = file.with_name("tiny.toml")
    recipe.write_text(
        'name = "tiny"\n[source]\nhub = "acme/tiny"\n[runtime]\nkind = "engine"\nimage = "25.08"\ngpus = "none"\n'
    )
    store = Store(file.parent / "store", clock=lambda: 0.0)
    return Resolver(store, FakeWiring(file.parent, World()), file.parent, print).resolve(recipe)


def quality(file: Path) -> object:
    home = file.parent / "home"
    wiring, store = FakeWiring(home, World()), Store(home, clock=lambda: 0.0)
    bench = Bench(wiring, store, Clocks(lambda: 0.0, lambda: 0.0), print, lambda: Builder(store, wiring.tools, print))
    return bench.export((), Ports(1, 2, 3), bench_options.BenchOptions(quality=file))


def token(file: Path) -> object:
    """As who asks the hub meets it. Nobody is behind that address, and nobody is asked."""
    origin = HubOrigin(file.parent / "home", {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN_PATH": str(file)})
    return origin.pin(Source(hub="acme/tiny"), file.parent)


def checkpoint(file: Path) -> object:
    files = (FileFact(file.name, 2),)
    return FolderOrigin(file.parent).read(Pinned(SourceKind.PATH, "tiny", "", files, str(file.parent)))


READERS = {
    "recipe": Reader("odd.toml", lambda file: taken_in(file.parent).read(file), (SourceError, RecipeError)),
    "lock": Reader("tiny.toml.lock", locked, (LockError,)),
    "golden transcripts": Reader(
        "tiny.toml.golden.json",
        lambda file: transcripts.read(resolve.spoken(file.with_name("tiny.toml")), str(file)),
        (ForgeError,),
    ),
    "prompts": Reader(
        "odd.jsonl", lambda file: verify.terms(VerifyOptions(prompts=file), VerifyTable(), (), ""), (ForgeError,)
    ),
    "quality file": Reader("odd.toml", quality, (BenchError,)),
    "Dockerfile of a family": Reader("llama.Dockerfile", own_dockerfile, (SourceError,), PLAIN_TEXT),
    "Dockerfile of all families": Reader("family.Dockerfile", own_dockerfile, (SourceError,), PLAIN_TEXT),
    "token of the hub": Reader("token", token, (SourceError,)),
    "results": Reader("odd.json", shown, (BenchError,)),
    "manifest": Reader(manifest.NAME, lambda file: publish.inventory(file.parent), (RepositoryError,)),
    "chat template": Reader("chat_template.jinja", lambda file: ChatTemplate.of(file.parent), (InferenceError,), PLAIN_TEXT),
    "tokenizer": Reader("tokenizer_config.json", lambda file: ChatTemplate.of(file.parent), (InferenceError,)),
    "checkpoint": Reader("config.json", checkpoint, (SourceError,)),
    "note of an image": Reader(IMAGE, lambda file: noted(file.parent), (StoreError,)),
    "what is patched": Reader("odd.json", lambda file: texts.table(file, StepError), (StepError,)),
    "the twin": Reader("config.json", read_json, (CheckpointFault,)),
    "preprocessing": Reader(
        "config.json", lambda file: load("preprocessing", fake_triton)._json(file), (fake_triton.TritonModelException,)
    ),
}


def outcome(read: Callable[[Path], object], file: Path) -> object:
    """What comes of it, an error too; fails where nothing does."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(read(file))
        except Exception as error:  # noqa: BLE001  # it is looked at by whoever asks
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LONG)
    assert found, "it hangs"
    return found[0]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_an_unreadable_text_is_an_error_of_the_readers_family(tmp_path: Path, reader: str, odd: str) -> None:
    asked = READERS[reader]
    if odd not in asked.odd:
        pytest.skip("a text, which is not parsed here")
    if odd == "no permission" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    file = tmp_path / asked.name
    ODD[odd](file)
    found = outcome(asked.read, file)
    assert isinstance(found, asked.families), found
    assert file.name in str(found)
    if isinstance(found, RecipeError):
        assert all(problem.hint for problem in found.problems)
    elif isinstance(found, ForgeError):
        assert found.hint


@pytest.mark.parametrize("odd", ODD)
def test_a_broken_text_is_told_and_check_goes_on(tmp_path: Path, odd: str) -> None:
    if odd == "no permission" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    ODD[odd](tmp_path / "odd.json")
    found = outcome(texts.document, tmp_path / "odd.json")
    assert isinstance(found, tuple)
    assert found[0] == {}
    assert found[1]
    (tmp_path / "model").mkdir()
    ODD[odd](tmp_path / "model" / "config.pbtxt")
    assert not isinstance(outcome(lambda place: reading.read(place, None), tmp_path), Exception)
    ODD[odd](tmp_path / manifest.NAME)
    assert isinstance(outcome(lambda place: tenants.standing(str(place)), tmp_path), str)


def test_code_that_is_nested_too_deep_is_not_patched() -> None:
    for text in ("(" * 100_000, "\0", "-" * 100_000 + "1"):
        with pytest.raises(StepError):
            patches.apply(CallPatch("x.py", "read", 0, ("a",)), text)


def test_an_ordinary_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "good").write_text('{"a": "ä"}')
    assert texts.document(tmp_path / "good") == ({"a": "ä"}, "")
    assert texts.read(tmp_path / "good", SourceError) == '{"a": "ä"}'
    assert texts.there(tmp_path / "none", SourceError) is None
    with pytest.raises(SourceError, match="there is no such file"):
        texts.read(tmp_path / "none", SourceError)
