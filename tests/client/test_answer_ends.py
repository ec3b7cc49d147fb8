"""What every client says of an answer's end, from the chunks that models of several kinds send."""

from collections.abc import Callable

import pytest

from forge.client.answer import Finish, Hearing
from forge.client.types import Chunk, Request
from forge.serve.openai.stream import Telling

LIMIT = 3
ASKED = Request("model", "prompt", LIMIT)
WHOLE = Request("model", "prompt", LIMIT, stream=False)


def counted(*texts: str) -> tuple[Chunk, ...]:
    """A model that counts its tokens; Triton's last response is empty."""
    return (*(Chunk(text, output_tokens=1) for text in texts), Chunk("", final=True))


def plain(*texts: str) -> tuple[Chunk, ...]:
    """NVIDIA's bls up to 1.0: a response for each token, and nothing but its text."""
    return (*(Chunk(text) for text in texts), Chunk("", final=True))


def sure(*texts: str) -> tuple[Chunk, ...]:
    """Log-probabilities in place of counts."""
    return (*(Chunk(text, log_probs=(-0.5,)) for text in texts), Chunk("", final=True))


def ends(request: Request, *chunks: Chunk, tokens: int = 0) -> tuple[str, str | None]:
    """As the OpenAI door tells it, and as generate, chat and Python's clients do; ``tokens``: the tokenizer's count."""
    telling, hearing = Telling(request, lambda _: tokens), Hearing(request)
    for chunk in chunks:
        telling.hear(chunk)
        hearing.hear(chunk)
    return telling.finish, hearing.answer(lambda _: tokens).replies[0].finish


@pytest.mark.parametrize("kind", [counted, plain, sure])
@pytest.mark.parametrize(
    ("texts", "finish"),
    [
        (("a", "b"), Finish.STOP),
        (("a", "b", "c"), Finish.LENGTH),
        (("a", "b", ""), Finish.STOP),
        (("a", "", "b"), Finish.LENGTH),
        (("a", "", ""), Finish.LENGTH),
    ],
    ids=["short", "full", "a further end token is the last allowed", "something unspoken within", "said nothing for long"],
)
def test_an_end_token_at_the_limit_is_no_cut(
    kind: Callable[..., tuple[Chunk, ...]], texts: tuple[str, ...], finish: Finish
) -> None:
    assert ends(ASKED, *kind(*texts)) == (finish, finish)


def test_a_character_broken_at_the_limit_is_no_end_token() -> None:
    """Its tokens bring no text until nothing more comes."""
    telling = Telling(ASKED, lambda _: 0)
    for chunk in (
        Chunk("a", output_tokens=1),
        Chunk("b", output_tokens=1),
        Chunk("", output_tokens=1),
        Chunk("\ufffd", final=True),
    ):
        telling.hear(chunk)
    assert telling.finish is Finish.LENGTH


def test_an_empty_last_response_is_no_end_token() -> None:
    telling = Telling(ASKED, lambda _: 0)
    for chunk in plain("a", "b", "c", ""):
        telling.hear(chunk)
    assert telling.finish is Finish.LENGTH


@pytest.mark.parametrize("request_", [ASKED, WHOLE], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("said", "finish"),
    [("stop", Finish.STOP), ("length", Finish.LENGTH), ("timeout", Finish.LENGTH), ("cancelled", Finish.LENGTH)],
)
def test_a_model_that_says_why_it_ended_is_believed(request_: Request, said: str, finish: Finish) -> None:
    """llmapi's; without a word of its own, three tokens of three would be a cut, and one of three none."""
    for count in (1, LIMIT):
        assert ends(request_, Chunk("a b c", True, output_tokens=count, finish=said)) == (finish, finish)


@pytest.mark.parametrize(
    ("chunk", "tokens", "finish"),
    [
        (Chunk("a b c", True, output_tokens=3), 0, Finish.LENGTH),
        (Chunk("a b", True, output_tokens=3), 2, Finish.LENGTH),
        (Chunk("a b", True, output_tokens=2), 0, Finish.STOP),
        (Chunk("a b", True, log_probs=(-1.0, -1.0)), 0, Finish.STOP),
        (Chunk("", True, tokens=(4, 5, 6)), 0, Finish.LENGTH),
        (Chunk("a b c", True), 3, Finish.LENGTH),
        (Chunk("a b", True), 2, Finish.STOP),
        (Chunk("a b c", True, output_tokens=3, stopped=True), 0, Finish.STOP),
    ],
)
def test_an_answer_that_came_whole_is_judged_by_its_count(chunk: Chunk, tokens: int, finish: Finish) -> None:
    """Of the last token it is not known whether it brought text: at the limit a cut is the likelier."""
    assert ends(WHOLE, chunk, tokens=tokens) == (finish, finish)


def test_a_whole_uncounted_answer_has_no_known_end() -> None:
    """OpenAI's API has no word for that."""
    assert ends(WHOLE, Chunk("a b c", True)) == (Finish.STOP, None)


def test_a_count_of_all_beams_together_is_nobodys_own() -> None:
    hearing = Hearing(WHOLE)
    for chunk in (Chunk("a b", output_tokens=4), Chunk("a c", True, index=1)):
        hearing.hear(chunk)
    assert [reply.finish for reply in hearing.answer(lambda _: 2).replies] == [Finish.STOP, Finish.STOP]
