"""Stop texts cut answers as texts do, whatever the tokens are; and what models are told of stop and bad words."""

from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from forge.client.answer import Hearing
from forge.client.stops import Stops, barred, spellings
from forge.client.types import Chunk, Request


def shown(texts: Sequence[str], *pieces: str, final: bool = True) -> list[Chunk]:
    """What is shown of an answer that comes in ``pieces``, each of one token."""
    stops = Stops(texts)
    found: list[Chunk] = []
    for place, piece in enumerate((*pieces, "")):
        last = place == len(pieces)
        if last and not final:
            break
        chunk = Chunk(piece, last, log_probs=() if last else (-1.0,), output_tokens=0 if last else 1, seconds=float(place))
        found += stops.hear([chunk])
        if stops.reached:
            break
    return found


def said(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (("Paris",), (" is", " Paris", "."), " is "),
        (("Paris",), (" is", " Pa", "r", "is", "."), " is "),
        (("Paris",), (" Par", "t", " of"), " Part of"),
        (("aab",), ("a", "a", "a", "b", "c"), "a"),
        (("b", "ab"), ("x", "a", "b"), "x"),
        (("巴黎",), ("首都是", "巴", "黎", "。"), "首都是"),
        (("👩‍🚀",), ("go ", "👩", "\u200d", "🚀", "!"), "go "),
        (("👩‍🚀",), ("go ", "👩", "\u200d", "🔬"), "go 👩\u200d🔬"),
        (("\n\n",), ("one\n", "two\n", "\nthree"), "one\ntwo"),
        (("one",), ("one", " two"), ""),
        (("",), ("one", " two"), "one two"),
        ((), ("one", " two"), "one two"),
    ],
)
def test_an_answer_ends_before_the_first_stop_text(stops: Sequence[str], pieces: Sequence[str], expected: str) -> None:
    found = shown(stops, *pieces)
    assert said(found) == expected
    assert [chunk.final for chunk in found] == [False] * (len(found) - 1) + [True]
    assert found[-1].stopped is (expected != "".join(pieces))


def test_only_the_possible_beginning_of_a_stop_text_waits() -> None:
    assert said(shown(("END",), "one ", "E", "N", final=False)) == "one "
    assert said(shown(("END",), "one ", "E", "N", "d", final=False)) == "one ENd"
    assert said(shown(("END",), "one ", "E", "N")) == "one EN"


def test_counts_and_times_of_what_is_cut_off_are_kept() -> None:
    found = shown(("Paris",), " is", " Pa", "r", "is", ".")
    assert sum(chunk.output_tokens or 0 for chunk in found) == 4
    assert [chunk.log_probs for chunk in found] == [(-1.0,), (-1.0,)]
    assert found[-1].seconds == 3.0


def test_sequences_end_singly_and_the_request_with_the_last() -> None:
    stops = Stops(("b",), 2)
    first = list(stops.hear([Chunk("a"), Chunk("x", index=1), Chunk("b"), Chunk("more", output_tokens=1)]))
    assert [(chunk.text, chunk.index, chunk.stopped, chunk.final) for chunk in first] == [
        ("a", 0, False, False),
        ("x", 1, False, False),
        ("", 0, True, False),
        ("", 0, False, False),
    ]
    assert first[-1].output_tokens == 1
    assert not stops.reached
    (last,) = stops.hear([Chunk("yb", index=1)])
    assert (last.text, last.stopped, last.final) == ("y", True, True)
    assert stops.reached


def test_what_another_sequence_holds_comes_before_the_final_chunk() -> None:
    stops = Stops(("END",), 2)
    found = list(stops.hear([Chunk("x E"), Chunk("y", True, index=1)]))
    assert [(chunk.text, chunk.index, chunk.final) for chunk in found] == [("x E", 0, False), ("y", 1, True)]


def test_beams_of_a_stream_are_cut_each_time_anew() -> None:
    stops, hearing = Stops(("b",), 2), Hearing(Request("m", "p", 9))
    for chunk in stops.hear(
        [Chunk("ab", whole=True), Chunk("ac", index=1, whole=True), Chunk("acb", whole=True), Chunk("", True)]
    ):
        hearing.hear(chunk)
    assert [(reply.text, reply.stopped) for reply in hearing.replies()] == [("ac", True), ("ac", False)]


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_any_cut_into_pieces_ends_a_text_alike(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    places = [place for stop in stops if (place := whole.find(stop)) >= 0]
    # in a stream, the stop text that is whole first ends the answer: a longer one that began before it may not be
    found = shown(stops, *pieces)
    if len(stops) < 2:
        assert said(found) == whole[: min(places, default=len(whole))]
    assert whole.startswith(said(found))
    assert not any(stop in said(found) for stop in stops)
    assert found[-1].final
    assert found[-1].stopped is bool(places)


def test_models_are_told_both_spellings_once() -> None:
    assert spellings(("Paris", " is", "\n", "Paris")) == ("Paris", " Paris", " is", "\n")
    assert barred(("Paris", " Paris", " is", " ")) == ("Paris", " Paris", " is", "is", " ")
