"""The batching loop by itself, with a decoder in miniature that counts, fails and remembers its company."""

import itertools

import numpy as np
from tokenizers import Tokenizer, decoders, models

from counting import BROKEN, UNREADABLE, Counting
from forge.twin.asks import Ask
from forge.twin.batching import Loop
from forge.twin.decoder import CHUNK
from forge.twin.pieces import Pieces
from twin_loop import Heard, heard, run


def test_sequences_are_stepped_together() -> None:
    decoder, three = Counting(), [heard([first]) for first in (1, 20, 30)]
    run(decoder, *three)
    assert [one.tokens[0] for one in three] == [[first + step for step in range(1, 6)] for first in (1, 20, 30)]
    assert ("step", 3) in decoder.log
    assert sum(kind == "step" for kind, _ in decoder.log) < 3 * 4


def test_a_failing_sequence_does_not_break_the_others() -> None:
    good, bad, also = heard([1]), heard([BROKEN]), heard([30], [40])
    run(Counting(), good, bad, also)
    assert bad.outcome == "MemoryError: no room for this one"
    assert good.tokens[0] == [2, 3, 4, 5, 6]
    assert also.tokens == {0: [31, 32, 33, 34, 35], 1: [41, 42, 43, 44, 45]}
    assert not good.outcome


def test_short_prompts_that_wait_are_read_in_one_go() -> None:
    decoder, several = Counting(), [heard([first, first]) for first in (1, 20, 30)]
    run(decoder, *several)
    assert decoder.log[0] == ("prompts", 3)
    assert [one.tokens[0][0] for one in several] == [2, 21, 31]


def test_an_unreadable_prompt_does_not_break_its_neighbours() -> None:
    good, bad, also = heard([1]), heard([UNREADABLE]), heard([30], [40])
    run(Counting(), good, bad, also)
    assert bad.outcome == "MemoryError: no room to read this one"
    assert good.tokens[0] == [2, 3, 4, 5, 6]
    assert also.tokens == {0: [31, 32, 33, 34, 35], 1: [41, 42, 43, 44, 45]}


def test_prompts_a_decoder_takes_whole_are_read_singly() -> None:
    decoder = Counting(piece=None)
    run(decoder, heard([1]), heard([20]))
    assert [count for kind, count in decoder.log if kind == "prompts"] == [1, 1]


def test_a_long_prompt_is_taken_in_pieces_while_others_speak() -> None:
    decoder, speaking = Counting(), heard([1], count=20)
    long = heard([*([2] * (5 * CHUNK)), 9])
    run(decoder, speaking, long)
    assert long.tokens[0][0] == 10
    pieces = [index for index, (kind, _) in enumerate(decoder.log) if kind == "prompt"]
    assert [decoder.log[index][1] for index in pieces] == [1, *[CHUNK] * 5, 1]
    assert all(("step", 1) in decoder.log[one:other] for one, other in itertools.pairwise(pieces))


def test_no_more_sequences_are_stepped_than_there_are_places() -> None:
    decoder = Counting()
    run(decoder, *(heard([first]) for first in range(20, 29)), places=3)
    assert max(count for kind, count in decoder.log if kind == "step") == 3


def test_closing_ends_what_is_under_way_and_what_waits() -> None:
    loop, exchanges = Loop(Counting(), 1, lambda: 0.0, 1.0), [heard([1], count=900), heard([2])]
    for exchange in exchanges:
        loop.submit(exchange)
    loop.close()
    loop.run()
    assert [one.outcome for one in exchanges] == ["ended", "ended"]


def test_logits_of_a_prompt_are_read_when_asked_for() -> None:
    exchange = Heard((Ask(np.array([4, 5, 6]), 2, context_logits=True),))
    run(Counting(), exchange)
    assert exchange.outcome == "read 3;"


def bytewise() -> Tokenizer:
    """A tokenizer whose token n is the byte n of UTF-8."""
    tokenizer = Tokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def test_pieces_end_only_where_a_character_ends() -> None:
    pieces, held, cut = Pieces(bytewise()), list[int](), list[str]()
    for byte in "aé€🙂!".encode():
        held.append(byte)
        if pieces.whole(held):
            cut.append(bytes(held).decode())
            held.clear()
    assert cut == ["a", "é", "€", "🙂", "!"]


def test_broken_utf8_is_not_waited_for_for_ever() -> None:
    assert Pieces(bytewise()).whole([0xE2] * 8)
    assert not Pieces(bytewise()).whole([0xE2] * 3)


def test_without_a_tokenizer_every_token_is_a_piece() -> None:
    assert Pieces.of("").whole([200])
