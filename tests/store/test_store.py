"""The store holds what was made once, whole and read-only."""

import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings, strategies as st

from forge.errors import SourceError, StoreError
from forge.files import trees
from forge.store.store import Provenance
from store_makers import KEY, Clock, fill, key, provenance, store


def text(content: str) -> Callable[[Path], object]:
    return lambda out: (out / "file").write_text(content)


def test_what_was_made_is_found_with_every_file_kind(tmp_path: Path) -> None:
    made, fresh = store(tmp_path).make(KEY, provenance(), fill)
    assert fresh
    found = store(tmp_path).find(KEY)
    assert found is not None
    assert found == made
    assert (found.path / "1" / "deep" / "config.json").read_text() == "{}"
    assert os.access(found.path / "1" / "run", os.X_OK)
    assert (found.path / "python3").readlink() == Path(sys.executable)
    assert (found.path / "empty").is_dir()
    entries = {entry.path: entry for entry in found.files()}
    assert sorted(entries) == ["1/deep/config.json", "1/run", "empty", "inner", "python3", "weights.bin"]
    assert entries["weights.bin"].blake3 == blake3((found.path / "weights.bin").read_bytes()).hexdigest()
    assert found.size == sum(entry.size for entry in entries.values()) == 256 * 1024 + 2 + 10


def test_an_artifact_cannot_be_written_to(tmp_path: Path) -> None:
    made, _ = store(tmp_path).make(KEY, provenance(), fill)
    for path in [made.path, *(item.path for item in trees.walk(made.path) if not item.is_link)]:
        assert not path.stat().st_mode & 0o222, path


def test_a_second_make_runs_nothing(tmp_path: Path) -> None:
    store(tmp_path).make(KEY, provenance(), text("first"))
    again, fresh = store(tmp_path).make(KEY, provenance(), text("second"))
    assert not fresh
    assert (again.path / "file").read_text() == "first"


def test_nothing_made_is_not_found_and_looking_writes_nothing(tmp_path: Path) -> None:
    assert store(tmp_path / "home").find(KEY) is None
    assert list(store(tmp_path / "home").artifacts()) == []
    assert store(tmp_path / "home").verify() == ()
    assert store(tmp_path / "home").nearest(provenance()) is None
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("wrong", ["", "a", "../../etc", "a/b", ".hidden", "ab.cd"])
def test_a_key_is_a_name_and_never_a_path(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match="is no key"):
        store(tmp_path).find(wrong)


def test_the_manifest_says_when_and_from_what_it_was_made(tmp_path: Path) -> None:
    clock = Clock()

    def slowly(out: Path) -> None:
        clock.now += 7
        fill(out)

    wanted = Provenance("convert", "Run", {"dtype": "float16"}, {"model": key(1)})
    store(tmp_path, clock).make(KEY, wanted, slowly)
    found = store(tmp_path, clock).find(KEY)
    assert found is not None
    assert found.manifest.provenance == wanted
    assert found.seconds == 7
    assert found.manifest.made_at == 1_000_007


def test_a_maker_that_raises_leaves_nothing_but_its_error(tmp_path: Path) -> None:
    def broken(out: Path) -> None:
        fill(out)
        raise SourceError("the hub is down")

    with pytest.raises(SourceError, match="the hub is down"):
        store(tmp_path).make(KEY, provenance(), broken)
    assert store(tmp_path).find(KEY) is None
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_makers_own_missing_file_is_not_the_stores_blame(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store(tmp_path).make(KEY, provenance(), lambda out: (out / "never").read_text())


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    def listening(out: Path) -> None:
        here = Path.cwd()
        os.chdir(out)  # a socket's path is at most 108 bytes long
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind("door")
        finally:
            os.chdir(here)

    with pytest.raises(StoreError, match="door is neither a file, a folder nor a link"):
        store(tmp_path).make(KEY, provenance(), listening)
    with pytest.raises(StoreError, match="not UTF-8"):
        store(tmp_path).make(KEY, provenance(), lambda out: Path(os.fsdecode(bytes(out) + b"/\xff")).touch())
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_file_linked_from_elsewhere_is_copied_mode_kept_there(tmp_path: Path) -> None:
    mine = tmp_path / "my-checkpoint.bin"
    mine.write_bytes(b"weights")
    mine.chmod(0o640)

    def linking(out: Path) -> None:
        os.link(mine, out / "model.bin")
        os.link(mine, out / "again.bin")
        (out / "a").write_text("twice")
        os.link(out / "a", out / "b")

    made, _ = store(tmp_path / "home").make(KEY, provenance(), linking)
    assert stat.S_IMODE(mine.stat().st_mode) == 0o640
    assert mine.stat().st_nlink == 1
    mine.write_bytes(b"WEIGHTS")
    assert (made.path / "model.bin").read_bytes() == b"weights"
    assert os.path.samefile(made.path / "model.bin", made.path / "again.bin")
    assert os.path.samefile(made.path / "a", made.path / "b")
    assert store(tmp_path / "home").verify() == ()


def test_a_file_linked_from_another_artifact_stays_linked(tmp_path: Path) -> None:
    model, _ = store(tmp_path).make(key(1), provenance(), fill)
    for number, needs in ((2, {"model": model.key}), (3, dict[str, str]())):
        wanted = Provenance("entry", "Assemble", {}, needs)
        made, _ = store(tmp_path).make(key(number), wanted, lambda out: os.link(model.path / "weights.bin", out / "w"))
        assert os.path.samefile(model.path / "weights.bin", made.path / "w")


@pytest.mark.parametrize(("before", "after"), [(0o600, 0o444), (0o700, 0o555), (0o644, 0o444), (0o755, 0o555)])
def test_who_serves_an_artifact_can_read_and_run_it(tmp_path: Path, before: int, after: int) -> None:
    def private(out: Path) -> None:
        (out / "deep").mkdir(mode=0o700)
        (out / "deep" / "file").write_text("x")
        (out / "deep" / "file").chmod(before)

    made, _ = store(tmp_path).make(KEY, provenance(), private)
    modes = [stat.S_IMODE((made.path / name).stat().st_mode) for name in (".", "deep", "deep/file")]
    assert modes == [0o555, 0o555, after]
    assert store(tmp_path).verify() == ()


def test_large_files_linked_from_a_need_are_not_read_again(tmp_path: Path) -> None:
    model, _ = store(tmp_path).make(key(1), provenance(), lambda out: (out / "w").write_bytes(bytes(2 << 20)))
    kept = next(entry.blake3 for entry in model.files())
    # Whoever read the file again would see these bytes.
    (model.path / "w").chmod(0o644)
    (model.path / "w").write_bytes(b"x" * (2 << 20))
    wanted = Provenance("entry", "Assemble", {}, {"model": model.key})
    entry, _ = store(tmp_path).make(key(2), wanted, lambda out: os.link(model.path / "w", out / "w"))
    assert [file.blake3 for file in entry.files()] == [kept]
    assert {damage.key for damage in store(tmp_path).verify()} == {model.key, entry.key}


def test_the_nearest_artifact_shares_step_action_and_most_inputs(tmp_path: Path) -> None:
    shelf = store(tmp_path)
    inputs = [{"dtype": "float16", "tp": "1"}, {"dtype": "float16", "tp": "2"}, {"dtype": "float32", "tp": "2"}]
    for number, each in enumerate(inputs):
        shelf.make(key(number), Provenance("convert", "Run", each, {"model": key(9)}), fill)
    shelf.make(key(8), Provenance("build", "Run", {"dtype": "bfloat16", "tp": "2", "pp": "1"}, {}), fill)
    near = shelf.nearest(Provenance("convert", "Run", {"dtype": "float32", "tp": "4"}, {"model": key(9)}))
    assert near is not None
    assert near.key == key(2)
    shelf.collect()
    assert shelf.nearest(Provenance("convert", "Run", {}, {})) is None


def flip(path: Path, at: int) -> None:
    """Turn one bit of a file, whatever its mode."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << (at % 8)
    path.write_bytes(data)


@settings(max_examples=40)
@given(st.integers(min_value=0, max_value=10**6), st.sampled_from(["tree/weights.bin", "manifest.json", "files.json"]))
def test_any_flipped_bit_is_found_and_made_anew(tmp_path_factory: pytest.TempPathFactory, at: int, which: str) -> None:
    shelf = store(tmp_path_factory.mktemp("home"))
    made, _ = shelf.make(KEY, provenance(), fill)
    shelf.make(key(2), provenance(), fill)
    assert shelf.verify() == ()
    flip(made.path.parent / which, at)
    assert [damage.key for damage in shelf.verify()] == [KEY]
    assert shelf.find(KEY) is None
    assert shelf.find(key(2)) is not None
    _, fresh = shelf.make(KEY, provenance(), fill)
    assert fresh
    assert shelf.verify() == ()


def retarget(link: Path) -> None:
    link.unlink()
    link.symlink_to("elsewhere")


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda tree: (tree / "1" / "run").unlink(), "1/run: missing"),
    "extra": (lambda tree: (tree / "new").write_text("?"), "new: was not made here"),
    "shorter": (lambda tree: os.truncate(tree / "weights.bin", 5), "weights.bin: had 262144 bytes, has 5"),
    "mode": (lambda tree: (tree / "1" / "run").chmod(0o444), "1/run: its kind, target or executable bit changed"),
    "link": (lambda tree: retarget(tree / "inner"), "inner: its kind, target or executable bit changed"),
    "folder": (lambda tree: (tree / "empty").rmdir(), "empty: missing"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_every_other_harm_is_found_and_said(tmp_path: Path, harm: str) -> None:
    made, _ = store(tmp_path).make(KEY, provenance(), fill)
    for item in [made.path, *(item.path for item in trees.walk(made.path) if not item.is_link)]:
        item.chmod(item.stat().st_mode | 0o200)
    act, said = HARMS[harm]
    act(made.path)
    assert [damage.problems for damage in store(tmp_path).verify([KEY])] == [(said,)]
    assert store(tmp_path).find(KEY) is None


def test_caches_that_python_wrote_as_root_are_no_damage(tmp_path: Path) -> None:
    made, _ = store(tmp_path).make(KEY, provenance(), fill)
    (made.path / "1").chmod(0o755)
    (made.path / "1" / "__pycache__").mkdir()
    (made.path / "1" / "__pycache__" / "x.pyc").write_text("")
    assert store(tmp_path).verify() == ()


def test_an_artifact_with_a_damaged_manifest_is_made_anew(tmp_path: Path) -> None:
    made, _ = store(tmp_path).make(KEY, provenance(), fill)
    flip(made.path.parent / "manifest.json", 40)
    assert store(tmp_path).find(KEY) is None
    _, fresh = store(tmp_path).make(KEY, provenance(), fill)
    assert fresh
    assert store(tmp_path).verify() == ()
    assert list((tmp_path / "staging").iterdir()) == []


def test_an_artifact_that_was_moved_to_another_key_is_none(tmp_path: Path) -> None:
    """By somebody who restores a store from a copy, say."""
    made, _ = store(tmp_path).make(KEY, provenance(), fill)
    other = made.path.parent.with_name(key(2))
    made.path.parent.rename(other)
    assert [found.key for found in store(tmp_path).artifacts()] == []
    assert store(tmp_path).find(other.name) is None
