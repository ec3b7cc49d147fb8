"""One answer as the requests that it takes, where a model gives fewer sequences than were asked for."""

from collections.abc import Sequence

from forge.client.grpc import Calls
from forge.client.turns import Turns
from forge.client.types import Chunk, ModelMetadata, Request, TensorMetadata

SEVERAL = Request("m", "hello", 5, n=3, seed=7)


def model(*names: str) -> ModelMetadata:
    """What takes text, a length and ``names``."""
    types = {"text_input": "BYTES", "max_tokens": "INT32", **dict.fromkeys(names, "UINT64")}
    return ModelMetadata("m", {name: TensorMetadata(name, kind, (-1, 1)) for name, kind in types.items()}, {})


OBEYING = model("seed", "num_return_sequences")


def asked(request: Request, to: ModelMetadata, *answers: Sequence[Chunk]) -> tuple[list[Request], list[Chunk]]:
    """The requests that are sent where each is answered with the next of ``answers``, and what is heard in all."""
    turns, left = Turns(request, to), iter(answers)
    sent: list[Request] = []
    heard: list[Chunk] = []
    for each in turns.requests():
        sent.append(each)
        heard += [turns.hear(chunk) for chunk in next(left)]
    return sent, heard


ONE = (Chunk("a"), Chunk("", final=True))


def test_a_model_that_gives_all_is_asked_once() -> None:
    whole = [Chunk("a"), Chunk("b", index=1), Chunk("c", index=2), Chunk("", final=True)]
    sent, heard = asked(SEVERAL, OBEYING, whole)
    assert ([each.n for each in sent], heard) == ([3], whole)


def test_answers_a_model_cannot_give_follow_with_the_next_seeds() -> None:
    sent, heard = asked(SEVERAL, OBEYING, ONE, ONE, ONE)
    assert [(each.n, each.seed) for each in sent] == [(3, 7), (None, 8), (None, 9)]
    assert [(chunk.index, chunk.final) for chunk in heard] == [
        (0, False), (0, False), (1, False), (1, False), (2, False), (2, True),
    ]  # fmt: skip


def test_a_model_without_the_input_is_asked_one_by_one() -> None:
    sent, heard = asked(SEVERAL, model("random_seed"), ONE, ONE, ONE)
    assert [(each.n, each.seed) for each in sent] == [(None, 7), (None, 8), (None, 9)]
    assert [chunk.final for chunk in heard].index(True) == len(heard) - 1


def test_several_answers_draw_their_own_seeds_where_none_is_said() -> None:
    sent, _ = asked(Request("m", "hello", 5, n=2), model("seed"), ONE, ONE)
    first, second = (each.seed for each in sent)
    assert first is not None
    assert second == first + 1


def test_an_answer_of_no_piece_at_all_counts_as_one() -> None:
    sent, heard = asked(SEVERAL, OBEYING, ONE, (), ONE)
    assert [each.seed for each in sent] == [7, 8, 9]
    assert {chunk.index for chunk in heard} == {0, 2}


def test_all_requests_of_an_answer_share_its_time() -> None:
    assert [Calls("host:1", 10.0).left(passed) for passed in (0.0, 4.0, 11.0)] == [10.0, 6.0, 0.0]
    assert Calls("host:1", None).left(4.0) is None


def test_the_best_beams_of_a_search_are_one_request() -> None:
    beams = Request("m", "hello", 5, n=2, beam_width=4)
    sent, heard = asked(beams, model(), [Chunk("a"), Chunk("b", True, index=1)])
    assert (sent, [chunk.final for chunk in heard]) == ([beams], [False, True])
