"""Trees of files that change while forge looks at them."""

import os
import stat
import sys
from pathlib import Path

import pytest

from forge.files import trees


def test_a_walk_holds_no_folder_that_it_has_not_reached(tmp_path: Path) -> None:
    for folder in ("a/b", "a/c"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "first").touch()
    walk = trees.walk(tmp_path)
    seen = [next(walk).relative for _ in range(3)]
    (tmp_path / "a" / "c" / "second").touch()
    assert [*seen, *(found.relative for found in walk)] == ["a", "a/b", "a/b/first", "a/c", "a/c/first", "a/c/second"]


def test_bytes_are_counted_while_folders_vanish(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "half").write_bytes(b"12345")

    def vanish(event: str, told: tuple[object, ...]) -> None:
        if event == "os.scandir" and str(told[0]) == str(tmp_path / "gone"):
            os.rmdir(tmp_path / "gone")

    sys.addaudithook(vanish)  # for good; no other test looks there
    assert trees.size_below(tmp_path) == 5
    assert not (tmp_path / "gone").exists()


def test_writing_follows_a_file_s_link_and_keeps_its_mode(tmp_path: Path) -> None:
    real, link = tmp_path / "below" / "real.toml", tmp_path / "link.toml"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to("below/real.toml")
    trees.write_whole(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert sorted(os.listdir(real.parent)) == ["real.toml"]


def test_in_forges_folders_a_link_gives_way_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "others").write_text("theirs")
    (tmp_path / "config").symlink_to("others")
    trees.write_whole(tmp_path / "config", "ours", aside=tmp_path)
    assert not (tmp_path / "config").is_symlink()
    assert (tmp_path / "others").read_text() == "theirs"


def test_a_missing_folder_is_told_by_the_given_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        trees.write_whole(tmp_path / "none" / "plan.svg", "text")
    assert caught.value.filename == str(tmp_path / "none" / "plan.svg")


def test_a_pipe_takes_what_is_written_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        trees.write_whole(pipe, "text")
        assert os.read(reader, 16) == b"text"
        assert pipe.is_fifo()
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    ("mode", "who"), [(0o755, ""), (0o757, "everybody"), (0o775, "the group 54321"), (0o1777, "everybody")]
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder to a group of another name")
def test_who_else_may_write_to_a_folder(tmp_path: Path, mode: int, who: str) -> None:
    os.chown(tmp_path, -1, 54321)
    tmp_path.chmod(mode)
    assert trees.writers(tmp_path) == who
    assert trees.writers(tmp_path / "gone") == ""
    os.chown(tmp_path, 54321, 54321)
    assert trees.writers(tmp_path) == ("everybody" if mode & 0o002 else ""), "a group of its owner's own name"
