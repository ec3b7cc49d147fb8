"""What the OpenAI door says of an answer's end, from the chunks that models of several kinds send."""

from collections.abc import Callable

import pytest

from forge.openai.telling import Finish, Telling
from forge.ports import Chunk

LIMIT = 3


def counted(*texts: str) -> tuple[Chunk, ...]:
    """A model that counts its tokens; Triton's last response is empty."""
    return (*(Chunk(text, output_tokens=1) for text in texts), Chunk("", final=True))


def plain(*texts: str) -> tuple[Chunk, ...]:
    """NVIDIA's bls up to 1.0: a response for each token, and nothing but its text."""
    return (*(Chunk(text) for text in texts), Chunk("", final=True))


def sure(*texts: str) -> tuple[Chunk, ...]:
    """Log-probabilities in place of counts."""
    return (*(Chunk(text, log_probs=(-0.5,)) for text in texts), Chunk("", final=True))


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
def test_an_answer_that_an_end_token_ends_at_its_limit_was_not_cut(
    kind: Callable[..., tuple[Chunk, ...]], texts: tuple[str, ...], finish: Finish
) -> None:
    telling = Telling(LIMIT, lambda _: 0)
    for chunk in kind(*texts):
        telling.hear(chunk)
    assert telling.finish is finish


def test_a_character_that_stayed_broken_at_the_limit_is_no_end_token() -> None:
    """Its tokens bring no text until nothing more comes."""
    telling = Telling(LIMIT, lambda _: 0)
    for chunk in (
        Chunk("a", output_tokens=1),
        Chunk("b", output_tokens=1),
        Chunk("", output_tokens=1),
        Chunk("\ufffd", final=True),
    ):
        telling.hear(chunk)
    assert telling.finish is Finish.LENGTH


def test_an_empty_response_after_a_full_answer_is_no_end_token() -> None:
    telling = Telling(LIMIT, lambda _: 0)
    for chunk in plain("a", "b", "c", ""):
        telling.hear(chunk)
    assert telling.finish is Finish.LENGTH
