"""A shared store that lies: of whatever size and length its answers are, they end; and nobody else is told a token."""

import base64
import json
import re
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from click.testing import CliRunner
from msgspec.structs import replace

from forge.cli import main
from forge.errors import StoreError
from forge.files.trees import Entry
from forge.remote import object_store, registry
from forge.remote.open import place
from forge.remote.place import PART, Place, RemoteError, Written
from forge.remote.record import Builder, Record, Rotten, decode
from forge.remote.shared import Shared
from forge.store import artifact
from forge.store.artifact import Manifest, Provenance
from forge.store.store import Store
from lying_server import Liar, Turn, lying
from patience import soon
from remote_kit import ENGINE_MADE
from store_makers import KEY

pytest.importorskip("obstore", reason="a shared store is the extra `remote`: pip install 'triton-forge[remote]'")

FEW = 1 << 20
"""Bytes that are taken for a record here, so that tests are quick."""
SOCKETS = 100 << 20
"""Bytes that both ends of a connection may hold on top, and what is read at a time."""
BLOB = "sha256:" + "ab" * 32
USER, PASSWORD = "ada", "a-password-of-the-tests"
Ask = Callable[[Place], object]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "RECORD", FEW)
    monkeypatch.setattr(registry, "_SMALL", FEW)
    monkeypatch.setattr(object_store, "RECORD", FEW)


def of_registry(liar: Liar, deadline: float = 5.0) -> Place:
    return place(f"oci://127.0.0.1:{liar.port}/team/name", deadline)


def of_objects(liar: Liar, deadline: float = 5.0) -> Place:
    return place(f"http://127.0.0.1:{liar.port}/store", deadline)


def image(digest: str = BLOB) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "mediaType": "x", "config": {"mediaType": "x", "digest": digest, "size": 1}, "layers": []}
    ).encode()


# -- of any size


def endless(turn: Turn) -> None:
    turn.say(200, content_length=None)
    turn.never_end()


def endless_record(turn: Turn) -> None:
    if "/manifests/" in turn.path:
        turn.say(200, image())
    else:
        endless(turn)


def endless_redirect(turn: Turn) -> None:
    turn.say(307, content_length=None, location="/v2/team/name/elsewhere")
    turn.never_end()


def endless_challenge(turn: Turn) -> None:
    turn.say(401, content_length=None, www_authenticate='Basic realm="x"')
    turn.never_end()


def endless_error(turn: Turn) -> None:
    turn.say(500, content_length=None)
    turn.never_end()


def record(asked: Place) -> object:
    return asked.record(KEY)


def tags(asked: Place) -> object:
    return list(asked.records())


def taken(asked: Place) -> bytes:
    """A blob that ought to have a thousand bytes."""
    return bytes(asked.get(BLOB, 1000))


@pytest.mark.parametrize("answer", [endless, endless_redirect, endless_challenge, endless_error])
@pytest.mark.parametrize("ask", [record, taken, tags])
def test_a_registrys_answer_without_an_end_is_not_read_on(answer: Callable[[Turn], None], ask: Ask) -> None:
    with lying(answer) as liar:
        with suppress(RemoteError):
            assert len(str(ask(of_registry(liar)))) < 5000, "whoever takes it sees that it is too long"
        assert liar.sent < SOCKETS
        before = liar.sent
        assert not soon(lambda: liar.sent > before + SOCKETS, 0.5), "nobody listens any more"


def test_a_record_without_an_end_is_no_record() -> None:
    with lying(endless_record) as liar:
        asked = of_registry(liar)
        assert len(asked.record(KEY) or b"") == FEW + 1
        shared = Shared(lambda: Named(asked), "it", lambda _: None, time.time)  # type: ignore[arg-type, return-value]
        (held,) = shared.records()
        assert "cannot be read" in held.problem


class Named:
    """A place that says what stands there; all else is another's affair."""

    def __init__(self, inner: Place, *names: str) -> None:
        self._inner, self._names = inner, names or (KEY,)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def records(self) -> Iterator[Written]:
        return iter([Written(name, 0.0) for name in self._names])


def test_what_is_compressed_small_is_not_inflated() -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(bomb.compress(bytes(FEW)) for _ in range(300)) + bomb.flush()
    assert len(packed) < FEW

    def answer(turn: Turn) -> None:
        turn.say(200, packed, content_encoding="gzip")

    with lying(answer) as liar:
        for asked in (of_registry(liar), of_objects(liar)):
            tracemalloc.start()
            try:
                assert len(asked.get(BLOB, len(packed))) == len(packed)
                with pytest.raises(RemoteError):
                    of_registry(liar).record(KEY)
                assert tracemalloc.get_traced_memory()[1] < SOCKETS
            finally:
                tracemalloc.stop()
        assert all(head.get("accept-encoding", "identity") == "identity" for head in liar.heads)


def large(turn: Turn) -> None:
    turn.say(200, content_length=10**12, last_modified="Sat, 28 Nov 2026 12:00:00 GMT")
    turn.never_end()


def test_an_objects_size_beyond_all_bounds_is_not_read() -> None:
    with lying(large) as liar:
        assert len(of_objects(liar).record(KEY) or b"") < FEW + SOCKETS
        assert len(taken(of_objects(liar))) < SOCKETS
        assert liar.sent < 2 * SOCKETS


def cut(turn: Turn) -> None:
    turn.say(200, b"x" * 1000, content_length=1001, last_modified="Sat, 28 Nov 2026 12:00:00 GMT")


@pytest.mark.parametrize("opened", [of_registry, of_objects])
def test_a_length_that_is_a_lie_is_told(opened: Callable[[Liar], Place]) -> None:
    with lying(cut) as liar, pytest.raises(RemoteError, match=r"cannot be (reached|read)"):
        opened(liar).get(BLOB, 1001)


# -- and however long


def dripping(turn: Turn) -> None:
    turn.say(200, content_length=None)
    turn.drip()


def circling(turn: Turn) -> None:
    turn.say(302, location=turn.path)


@pytest.mark.parametrize(("answer", "said"), [(dripping, "no answer for 1 s"), (circling, "without an end")])
def test_an_answer_that_comes_and_comes_ends_in_time(tmp_path: Path, answer: Callable[[Turn], None], said: str) -> None:
    with lying(answer) as liar:
        asked = of_registry(liar)
        asked.patience = 1.0
        shared = Shared(lambda: asked, asked.name, lambda _: None, time.time)
        for ask in (lambda: shared.pull(KEY, Store(tmp_path, clock=time.time)), shared.records, lambda: shared.known(KEY)):
            with pytest.raises(RemoteError, match=said):
                ask()


# -- to nobody else


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Liar], None]:
    """`docker login` at a registry."""

    def log_in(liar: Liar) -> None:
        word = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {f"127.0.0.1:{liar.port}": {"auth": word}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    return log_in


def beyond(other: Liar) -> dict[str, Callable[[Turn], None]]:
    """How a registry can send who asks it to another host."""
    there = f"http://localhost:{other.port}/v2/team/name/x"
    return {
        "redirect": lambda turn: turn.say(307, location=there),
        "uploads": lambda turn: turn.say(202, location=there),
        "pages": lambda turn: turn.say(200, b'{"tags": []}', link=f'<{there}>; rel="next"'),
    }


@pytest.mark.parametrize("how", ["redirect", "uploads", "pages"])
def test_a_registrys_token_goes_to_no_other_host(login: Callable[[Liar], None], how: str) -> None:
    def challenges(turn: Turn) -> None:
        turn.say(401, www_authenticate=f'Bearer realm="http://localhost:{other.port}/token"')

    def asks_first(turn: Turn) -> None:
        if "authorization" in liar.heads[-1]:
            beyond(other)[how](turn)
        else:
            turn.say(401, www_authenticate='Basic realm="x"')

    with lying(challenges) as other, lying(asks_first) as liar:
        login(liar)
        asked = of_registry(liar)
        asks: dict[str, Callable[[], object]] = {
            "redirect": lambda: asked.get(BLOB, 10),
            "uploads": lambda: asked.put(BLOB, b"x"),
            "pages": lambda: list(asked.records()),
        }
        with pytest.raises(RemoteError):
            asks[how]()
        assert any("authorization" in head for head in liar.heads)
        assert len(other.heads) == (0 if how == "uploads" else 1)
        assert [head for head in other.heads if "authorization" in head] == []


@pytest.mark.parametrize("to", ["http://[", "http://127.0.0.1:x/", "http://a b/", "//"])
def test_a_redirect_to_no_address_is_said(to: str) -> None:
    with lying(lambda turn: turn.say(302, location=to)) as liar:
        with pytest.raises(RemoteError):
            of_registry(liar).get(BLOB, 10)
        with pytest.raises(RemoteError):
            of_registry(liar).put(BLOB, b"x")


def test_a_redirect_to_a_file_is_not_followed() -> None:
    with lying(lambda turn: turn.say(302, location="file:///etc/passwd")) as liar:
        with pytest.raises(RemoteError, match="leads to file:"):
            of_registry(liar).get(BLOB, 10)
        with pytest.raises(RemoteError):
            of_objects(liar).get(BLOB, 10)


def granted(url: str, challenge: str) -> str:
    """What is shown to a registry that asks so."""
    return registry.Registry(url, 5.0)._authorised(challenge)  # pyright: ignore[reportPrivateUsage]


def test_credentials_go_nowhere_in_the_clear(login: Callable[[Liar], None]) -> None:
    """A registry beyond this machine is spoken to by TLS, and names no place without it for a token."""
    with lying(lambda turn: turn.say(200, b'{"token": "t"}')) as liar:
        login(liar)
        challenge = f'Bearer realm="http://127.0.0.1:{liar.port}/token"'
        with pytest.raises(RemoteError, match="nothing protects them"):
            granted("oci://registry.example/name", challenge)
        assert liar.heads == []
        assert granted(of_registry(liar).name, challenge) == "Bearer t", "here as Docker does"


# -- a record that lies


class Counting:
    """A place with one record, which notes who asks for bytes."""

    patience = 60.0
    name = "a place"

    def __init__(self, record: bytes) -> None:
        self.asked = 0
        self._record = record

    def record(self, _: str) -> bytes:
        return self._record

    def get(self, _: str, size: int) -> bytes:
        self.asked += 1
        return bytes(size)


def stated(
    files: tuple[Entry, ...],
    part: int = PART,
    parts: dict[str, tuple[str, ...]] | None = None,
    made: Provenance = ENGINE_MADE,
    user: str = "a",
) -> bytes:
    """A record that is in order but for what it says of its files, and of who has made it."""
    listing = msgspec.json.encode(files).decode()
    manifest = artifact.sealed(
        Manifest(key=KEY, provenance=made, made_at=0.0, seconds=0.0, size=1, listing=blake3(listing.encode()).hexdigest())
    )
    by = Builder(user=user, host="b", system="c", forge="d", at=0)
    said = Record(manifest=artifact.written(manifest).decode(), listing=listing, by=by, part=part, parts=parts or {})
    return msgspec.json.encode(said)


ONE = "ab" * 32
LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "one blob, a million files": (
        lambda: stated(tuple(Entry(path=f"f{number}", size=PART, blake3=ONE) for number in range(1_000_000))),
        "the disk is full",
    ),
    "one blob, a million times": (
        lambda: stated((Entry(path="f", size=1_000_000, blake3=ONE),), 1, {ONE: ("a",) * 1_000_000}),
        "none that forge sends",
    ),
    "one blob, larger than any": (lambda: stated((Entry(path="f", size=PART + 1, blake3=ONE),)), "none that forge sends"),
    "large parts": (
        lambda: stated((Entry(path="f", size=4 * PART, blake3=ONE),), 2 * PART, {ONE: ("a", "b")}),
        "none that forge sends",
    ),
    "no part": (lambda: stated((Entry(path="f", size=2, blake3=ONE),), 0, {ONE: ("a", "b")}), "cannot be 2 parts"),
    "less than nothing": (lambda: stated((Entry(path="f", size=-2, blake3=ONE),)), "cannot be 1 parts"),
}


@pytest.mark.parametrize("how", LIES)
def test_a_record_that_lies_of_sizes_is_refused_unread(tmp_path: Path, how: str) -> None:
    lie, said = LIES[how]
    asked, store = Counting(lie()), Store(tmp_path, clock=time.time)
    shared = Shared(lambda: asked, "it", lambda _: None, time.time)  # type: ignore[arg-type, return-value]
    with pytest.raises(StoreError, match=said):
        shared.pull(KEY, store)
    assert asked.asked == 0
    assert store.find(KEY) is None
    assert not list(tmp_path.rglob("f*"))


CHANGED: dict[str, tuple[str, Callable[[Record], Record], str]] = {
    "another key": ("cd" * 32, lambda said: said, "its manifest is not as it was written"),
    "manifest": (KEY, lambda said: replace(said, manifest=said.manifest.replace("sm_89", "sm_90")), "its manifest is not"),
    "seal": (
        KEY,
        lambda said: replace(said, manifest=re.sub('"seal":"[^"]+"', '"seal":""', said.manifest)),
        "its manifest is not",
    ),
    "listing": (KEY, lambda said: replace(said, listing=said.listing.replace('"f"', '"g"')), "its listing is not"),
    "format": (KEY, lambda said: replace(said, format=2), "has format 2"),
}


@pytest.mark.parametrize("how", CHANGED)
def test_a_record_that_was_changed_is_none(how: str) -> None:
    key, change, said = CHANGED[how]
    whole = msgspec.json.decode(stated((Entry(path="f", size=1, blake3=ONE),)), type=Record)
    assert decode(KEY, msgspec.json.encode(whole))[2][0].path == "f"
    with pytest.raises(Rotten, match=said):
        decode(key, msgspec.json.encode(change(whole)))


def test_odd_names_of_records_are_not_shown() -> None:
    names = ("../../x", "\x1b[31mred", "a\nb", "x" * 200, KEY)
    asked = Named(Counting(stated(())), *names)  # type: ignore[arg-type]
    shared = Shared(lambda: asked, "it", lambda _: None, time.time)  # type: ignore[arg-type, return-value]
    assert [held.key for held in shared.records()] == [KEY]


def test_words_of_a_record_do_nothing_to_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "\x1b]52;c;cm0=\x07\x9b2J\u202e"
    text = stated((), made=Provenance(f"tiny{evil}", "Run", {f"a{evil}": evil}, {}), user=evil)
    url = f"file://{tmp_path / 'shared'}"
    assert place(url, 5.0).write(KEY, text, {}, anew=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FORGE_REMOTE_URL", url)
    for words in (["cache", "ls", "--remote"], ["cache", "explain", KEY], ["cache", "pull", KEY]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
        assert "52;c;" in done.output
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(done.output)
