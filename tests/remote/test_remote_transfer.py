"""A file's parts on their way back from a shared store: whatever order they come in, its digest is that of the whole."""

import os
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from blake3 import blake3

from forge.files.trees import Entry
from forge.remote.record import Rotten, misplaced
from forge.remote.transfer import Part, Whole

SIZE = 1000
COUNT = 50
"""More parts than wait in memory."""


def parts(content: bytes) -> list[Part]:
    file = Entry(path="weights", kind="file", size=len(content), blake3=blake3(content).hexdigest())
    offsets = range(0, len(content), SIZE)
    return [Part(file, number, at, min(SIZE, len(content) - at), str(number)) for number, at in enumerate(offsets)]


def taken(tree: Path, content: bytes, order: Sequence[Part]) -> None:
    whole = Whole(tree, {})
    whole.begin(order)
    for part in order:
        whole.write(part, memoryview(content[part.offset : part.offset + part.size]))


def orders() -> dict[str, list[int]]:
    there = list(range(COUNT))
    mixed = Random(3).sample(there, COUNT)
    return {"in order": there, "backwards": there[::-1], "mixed": mixed}


@pytest.mark.parametrize("order", orders().values(), ids=orders())
@pytest.mark.parametrize("short", [0, 1, 999])
def test_parts_in_any_order_make_the_file(tmp_path: Path, order: list[int], short: int) -> None:
    content = os.urandom(COUNT * SIZE - short)
    found = parts(content)
    taken(tmp_path, content, [found[number] for number in order])
    assert (tmp_path / "weights").read_bytes() == content
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("order", orders().values(), ids=orders())
@pytest.mark.parametrize("where", [0, 12345, COUNT * SIZE - 1])
def test_one_wrong_byte_is_found_wherever_it_is(tmp_path: Path, order: list[int], where: int) -> None:
    content = os.urandom(COUNT * SIZE)
    found = parts(content)
    wrong = content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]
    with pytest.raises(Rotten, match="not what was made"):
        taken(tmp_path, wrong, [found[number] for number in order])


def test_a_file_of_one_part_is_checked_too(tmp_path: Path) -> None:
    (part,) = parts(b"a few bytes")
    taken(tmp_path, b"a few bytes", [part])
    (tmp_path / "weights").unlink()
    with pytest.raises(Rotten):
        taken(tmp_path, b"a bad bytes", [part])


@pytest.mark.parametrize("target", ["/etc", "../../a", "b\0", "d/l/../..", "d/..", "d/./..", "d//.."])
def test_a_link_that_could_lead_out_is_refused(target: str) -> None:
    assert misplaced(Entry(path="a/b", kind="link", target=target))


@pytest.mark.parametrize("target", ["c", "../c", "../d/c", "d/c", "./../d/c", "d//c"])
def test_a_link_inside_of_its_artifact_is_taken(target: str) -> None:
    assert misplaced(Entry(path="a/b", kind="link", target=target)) == ""
