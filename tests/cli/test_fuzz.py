"""What fuzzing has found, and what it begins with: each reader takes it, or refuses it by its own errors."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import fuzz
import fuzz_readers

READERS = fuzz_readers.readers()


@pytest.mark.parametrize("name", READERS)
def test_a_reader_survives_all_that_was_kept_for_it(name: str, tmp_path: Path) -> None:
    given = [*READERS[name].seeds, *(file.read_bytes() for file in sorted((fuzz.CORPORA / name).glob("*")))]
    assert given
    assert [said for each in given if (said := fuzz.survived(READERS[name], each, tmp_path))] == []


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "odd", [b"", b"\0", b"\xff\xfe", b"{", b"[" * 100_000, b"{" * 100_000, b'{"a":' * 100_000, b"=" * 100_000]
)
def test_a_reader_survives_what_is_odd_to_all(name: str, odd: bytes, tmp_path: Path) -> None:
    assert fuzz.survived(READERS[name], odd, tmp_path) == ""


def test_an_error_of_another_kind_is_told(tmp_path: Path) -> None:
    def read(*_: object) -> object:
        raise KeyError("a")

    assert fuzz.survived(fuzz_readers.Reader(read, (ValueError,)), b"", tmp_path) == "KeyError: 'a'"
    assert fuzz.survived(fuzz_readers.Reader(read, (LookupError,)), b"", tmp_path) == ""


def _through_a_link(folder: Path) -> object:
    (folder / "in").symlink_to(folder / "own", target_is_directory=True)
    os.unlink(folder / "in")
    return (folder / "out" / "a").write_bytes(b"")


def _at_a_descriptor(folder: Path) -> object:
    opened = os.open(folder.parent, os.O_RDONLY)
    try:
        os.mkdir("other", dir_fd=opened)
    finally:
        os.close(opened)
    return None


REACHES: tuple[Callable[[Path], object], ...] = (
    lambda folder: (folder.parent / "a").write_bytes(b""),
    lambda folder: (folder / ".." / "a").open("ab"),
    lambda folder: os.close(os.open(folder.parent / "a", os.O_RDWR | os.O_CREAT)),
    lambda folder: (folder.parent / "other").mkdir(),
    lambda folder: (folder / "own").rename(folder.parent / "own"),
    lambda folder: (folder / "there").symlink_to(".."),
    lambda folder: os.link(folder.parent / "kept", folder / "kept"),
    lambda folder: (folder.parent / "kept").unlink(),
    lambda folder: (folder / "out" / "kept").chmod(0o777),
    _through_a_link,
    _at_a_descriptor,
    lambda _: subprocess.run(["true"], check=True),
    lambda _: os.posix_spawn("/bin/true", ["true"], {}),
    lambda _: socket.create_connection(("127.0.0.1", 9)),
)


@pytest.mark.parametrize("reach", REACHES)
def test_whatever_reaches_out_is_stopped_and_told(reach: Callable[[Path], object], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "own").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (tmp_path / "kept").write_bytes(b"as it was")
    before = (sorted(tmp_path.iterdir()), (tmp_path / "kept").stat())

    def read(_: bytes, own: Path) -> object:
        (own / "own" / "fine").write_bytes(b"")
        (own / "own" / "fine").replace(own / "own" / "also fine")
        try:
            return reach(own)
        except BaseException:  # noqa: BLE001 - a reader that says nothing of it is found, too
            return None

    assert fuzz.survived(fuzz_readers.Reader(read, ()), b"", folder).startswith("it reached out: ")
    assert (sorted(tmp_path.iterdir()), (tmp_path / "kept").stat()) == before
    assert (folder / "own" / "also fine").exists()


def test_every_reader_has_its_floor_and_all_read_equally_long() -> None:
    speeds = {"quick": 10_000, "middling": 1000, "slow": 10, "failing": 1000}

    def run(asks: Iterable[fuzz.Ask]) -> dict[str, fuzz.Outcome]:
        return {
            name: fuzz.Outcome(name, runs, runs / speeds[name], 0, 0, "no" if name == "failing" else "")
            for name, runs, _ in asks
        }

    told = {each.name: each for each in fuzz.whole(10_000_000, 1, speeds, run)}
    assert told["slow"].cases == told["failing"].cases == fuzz.FLOOR
    assert sum(each.cases for each in told.values()) == pytest.approx(10_000_000, abs=4)
    assert told["quick"].seconds == pytest.approx(told["middling"].seconds, rel=0.01)


def test_a_reader_that_crashes_or_is_interrupted_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fuzz, "_FAST", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "manifest", "no reader", "--corpus", str(tmp_path / "corpus"), "--cases", "9"])
    assert fuzz.main()
    assert not list(tmp_path.glob("forge-fuzz-*"))

    def interrupted(*_: object) -> fuzz.Outcome:
        assert list(tmp_path.glob("forge-fuzz-*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(fuzz.Campaign, "one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fuzz.main()
    assert not list(tmp_path.glob("forge-fuzz-*"))


@pytest.mark.parametrize("name", ["artifact", "contents of a bundle", "gguf converted", "metrics", "answer", "help text"])
def test_the_first_seed_is_read_whole(name: str, tmp_path: Path) -> None:
    READERS[name].read(READERS[name].seeds[0], tmp_path)


def test_every_recipe_that_is_shipped_is_among_the_seeds(tmp_path: Path) -> None:
    assert len(READERS["recipe"].seeds) >= 8
    for each in READERS["recipe"].seeds:
        READERS["recipe"].read(each, tmp_path)
