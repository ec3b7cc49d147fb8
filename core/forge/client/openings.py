"""Which token a tokenizer puts before every text by itself, read from the post-processor of its tokenizer.json. Pure.

Read and not asked: tokenizers, where it is installed, panics on some that a person can write. Tests hold this to what it says.
"""

from collections.abc import Sequence
from typing import cast


def opening(processor: object) -> str:
    """The first token's text; empty where none is put first, or where nobody could load such a post-processor."""
    stated = _table(processor)
    match stated.get("type"):
        case "RobertaProcessing" | "BertProcessing":
            first = (*_list(stated.get("cls")), None)[0]
            return first if isinstance(first, str) else ""
        case "TemplateProcessing":
            return _of_template(stated)
        case "Sequence":
            return next((text for each in _list(stated.get("processors")) if (text := opening(each))), "")
        case _:
            return ""


def _of_template(stated: dict[str, object]) -> str:
    """``single`` is a list of pieces, each ``{"SpecialToken": {"id"}}`` or ``{"Sequence": ...}``, the text itself; a special
    token stands for one or several tokens, or for none."""
    known = _table(stated.get("special_tokens"))
    for piece in _list(stated.get("single")):
        special = _table(_table(piece).get("SpecialToken"))
        if not special:
            return ""
        tokens = _list(_table(known.get(str(special.get("id")))).get("tokens"))
        if tokens:
            return str(tokens[0])
    return ""


def _table(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[object]:
    return cast("list[object]", value) if isinstance(value, list) else ()
