"""What fuzzing has found, and what it begins with: each reader takes it, or refuses it by its own errors."""

import pytest

import fuzz
import fuzz_readers

READERS = fuzz_readers.readers()


@pytest.mark.parametrize("name", READERS)
def test_a_reader_survives_all_that_was_kept_for_it(name: str) -> None:
    given = [*READERS[name].seeds, *(file.read_bytes() for file in sorted((fuzz.CORPORA / name).glob("*")))]
    assert given
    assert [said for each in given if (said := fuzz.survived(READERS[name], each))] == []


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "odd", [b"", b"\0", b"\xff\xfe", b"{", b"[" * 100_000, b"{" * 100_000, b'{"a":' * 100_000, b"=" * 100_000]
)
def test_a_reader_survives_what_is_odd_to_all(name: str, odd: bytes) -> None:
    assert fuzz.survived(READERS[name], odd) == ""


def test_an_error_of_another_kind_is_told() -> None:
    def read(_: bytes) -> object:
        raise KeyError("a")

    assert fuzz.survived(fuzz_readers.Reader(read, (ValueError,)), b"") == "KeyError: 'a'"
    assert fuzz.survived(fuzz_readers.Reader(read, (LookupError,)), b"") == ""


def test_every_recipe_that_is_shipped_is_among_the_seeds() -> None:
    assert len(READERS["recipe"].seeds) >= 8
    for each in READERS["recipe"].seeds:
        READERS["recipe"].read(each)
