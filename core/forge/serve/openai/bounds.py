"""The most that one request may ask, by the recipe's [limits]: checked before any of its texts is read. Pure."""

from collections.abc import Sequence

from forge.schema.values import LimitsTable
from forge.serve.openai.api_errors import Fault, beyond, too_large
from forge.serve.openai.requests import Ask


def check(ask: Ask, body: bytes, limits: LimitsTable) -> None:
    """Fault for a body that is too large, and for too many stop texts, or too long ones."""
    if len(body) > limits.max_body_bytes:
        raise too_large(limits.max_body_bytes)
    if len(ask.stops) > limits.max_words:
        raise beyond("stop", f"{len(ask.stops)} texts", limits.max_words, "max_words")
    longest = max(map(len, ask.stops), default=0)
    if longest > limits.max_word_chars:
        raise beyond("stop", f"a text of {longest} characters", limits.max_word_chars, "max_word_chars")


def check_beams(ask: Ask, width: int) -> None:
    """Fault for more answers than a beam search has beams."""
    if width > 1 and (ask.n or 1) > width:
        raise Fault(400, f"n is {ask.n}, more than beam_width {width}: its best beams are the answers", param="n")


def check_prompts(ask: Ask, prompts: Sequence[str], param: str, limits: LimitsTable) -> None:
    """Fault for too many prompts, too long ones, or too many answers; ``param`` is the field that holds the prompts."""
    copies = ask.n or 1
    if len(prompts) > limits.max_prompts:
        raise beyond(param, f"{len(prompts)} prompts", limits.max_prompts, "max_prompts")
    if len(prompts) * copies > limits.max_answers:
        raise beyond("n", f"{len(prompts) * copies} answers ({len(prompts)} x {copies})", limits.max_answers, "max_answers")
    longest = max(map(len, prompts))
    if limits.max_prompt_chars is not None and longest > limits.max_prompt_chars:
        raise beyond(param, f"{longest} characters", limits.max_prompt_chars, "max_prompt_chars")
