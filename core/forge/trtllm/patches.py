"""Patches as data, applied to text. Pure, and repeatable: a patched text is left as it is."""

import ast
import json
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from forge.errors import StepError
from forge.schema.values import CallPatch, JsonPatch, Patch, TextFile, TextPatch


class Applied(Struct, frozen=True):
    """The text afterwards, whether it was changed, and one sentence for the person who reads the log."""

    text: str
    applied: bool
    note: str


def apply(patch: Patch, text: str) -> Applied:
    """The text with the patch in it. StepError where a required patch finds nothing, or the text cannot be read."""
    match patch:
        case TextPatch():
            return _text(patch, text)
        case CallPatch():
            return _call(patch, text)
        case JsonPatch():
            return _json(patch, text)


def apply_all(patches: tuple[Patch, ...], text: str) -> tuple[str, tuple[str, ...]]:
    """The text with every patch in it, in order, and the note of each."""
    notes: list[str] = []
    for patch in patches:
        result = apply(patch, text)
        text = result.text
        notes.append(result.note)
    return text, tuple(notes)


def patched(patches: tuple[Patch, ...], files: Mapping[str, str]) -> tuple[tuple[TextFile, ...], tuple[str, ...]]:
    """Those of ``files`` (text by path) that the patches change, as they are then, and every patch's note.

    A patch for a file that is not there finds nothing: StepError where it is required.
    """
    changed: list[TextFile] = []
    notes: list[str] = []
    for path in dict.fromkeys(patch.file for patch in patches):
        mine = tuple(patch for patch in patches if patch.file == path)
        text, said = apply_all(mine, files.get(path, ""))
        notes += said
        if path in files and text != files[path]:
            changed.append(TextFile(path, text))
    return tuple(changed), tuple(notes)


def _text(patch: TextPatch, text: str) -> Applied:
    if not patch.find:
        raise StepError("a text patch has to say what to find", where=patch.file)
    done = patch.put and patch.put in text
    # Where ``put`` holds ``find`` again, what is patched already must not be patched once more.
    parts = text.split(patch.put) if done else [text]
    places = sum(part.count(patch.find) for part in parts)
    if places:
        fixed = patch.put.join(part.replace(patch.find, patch.put) for part in parts)
        return Applied(fixed, applied=True, note=_note(patch, f"applied: replaced in {places} place(s)"))
    if done:
        return Applied(text, applied=False, note=_note(patch, "not needed: it is in place already"))
    return _absent(patch, text, f"{_shorten(patch.find)!r} is not there", required=patch.required)


def _call(patch: CallPatch, text: str) -> Applied:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise StepError(f"this is no Python that can be read: {error.msg}", where=f"{patch.file}:{error.lineno}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # the parser's stack is full: MemoryError
        raise StepError(f"this is no Python that can be read: {error}", where=patch.file) from error
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is(node.func, patch.call)]
    if not calls:
        return _absent(patch, text, f"{patch.call} is not called", required=patch.required)
    source = text.encode()
    edits = [edit for call in calls for edit in _edits(patch, call, source)]
    if not edits:
        return Applied(text, applied=False, note=_note(patch, f"not needed: {patch.call} is called well"))
    for place, piece in sorted(edits, reverse=True):
        source = source[:place] + piece + source[place:]
    fixed = source.decode()
    _must_parse(patch, fixed)
    return Applied(fixed, applied=True, note=_note(patch, f"applied: {patch.call} gets {', '.join(patch.keywords)} by name"))


def _is(node: ast.expr, dotted: str) -> bool:
    """Whether the called name is ``dotted`` or ends in it: ``Config.read`` also stands in ``models.Config.read``."""
    spelled = ast.unparse(node)
    return spelled == dotted or spelled.endswith(f".{dotted}")


def _edits(patch: CallPatch, call: ast.Call, source: bytes) -> list[tuple[int, bytes]]:
    """(byte offset, bytes to insert) for one call; none unless it stands exactly as the patch describes.

    A call with more or fewer positional arguments means something else by them; a star hides how many there are.
    """
    stated = {each.arg for each in call.keywords}
    starred = any(isinstance(each, ast.Starred) for each in call.args) or None in stated
    exact = len(call.args) == patch.start + len(patch.keywords)
    if starred or not exact or stated.intersection(patch.keywords):
        return []
    if patch.given and tuple(map(ast.unparse, call.args[patch.start :])) != patch.given:
        return []
    before = call.args[patch.start - 1] if patch.start else call.func
    edits: list[tuple[int, bytes]] = []
    for argument, name in zip(call.args[patch.start :], patch.keywords, strict=True):
        place = _before_parentheses(source, _end(source, before), _start(source, argument))
        edits.append((place, f"{name}=".encode()))
        before = argument
    return edits


def _before_parentheses(source: bytes, low: int, high: int) -> int:
    """Where an argument begins that the tree says begins at ``high``: its own parentheses are not in the tree.

    Between the end of what stands before (``low``) and ``high`` there is a comma or the call's own parenthesis.
    """
    between = source[low:high]
    opened = between.rfind(b",") + 1 or between.find(b"(") + 1
    own = between.find(b"(", opened)
    return high if own < 0 or b"#" in between else low + own


def _start(source: bytes, node: ast.expr) -> int:
    return _offset(source, node.lineno, node.col_offset)


def _end(source: bytes, node: ast.expr) -> int:
    return _offset(source, node.end_lineno or node.lineno, node.end_col_offset or node.col_offset)


def _offset(source: bytes, line: int, column: int) -> int:
    return sum(len(each) for each in source.splitlines(keepends=True)[: line - 1]) + column


def _must_parse(patch: CallPatch, text: str) -> None:
    try:
        ast.parse(text)
    except SyntaxError as error:
        what = f"{patch.call} is written in a way that this patch cannot rewrite"
        raise StepError(what, where=f"{patch.file}:{error.lineno}") from error


def _json(patch: JsonPatch, text: str) -> Applied:
    try:
        document = msgspec.json.decode(text.removeprefix("\ufeff"), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise StepError(f"this is no JSON object: {error}", where=patch.file) from error
    after = {**document, **patch.keys}
    if json.dumps(after) == json.dumps(document):
        return Applied(text, applied=False, note=_note(patch, "not needed: the keys say so already"))
    return Applied(
        json.dumps(after, indent=2, ensure_ascii=False) + "\n",
        applied=True,
        note=_note(patch, f"set {', '.join(sorted(patch.keys))}"),
    )


def _absent(patch: TextPatch | CallPatch, text: str, what: str, *, required: bool) -> Applied:
    if required:
        hint = "the script is of another version than the patch was written for; update the family's plugin"
        raise StepError(f"a required patch finds nothing to fix: {what}", where=patch.file, hint=hint)
    return Applied(text, applied=False, note=_note(patch, f"not needed: {what}"))


def _note(patch: Patch, what: str) -> str:
    return f"{patch.file}: {what}" + (f" ({patch.why})" if patch.why else "")


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
