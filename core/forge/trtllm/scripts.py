"""The scripts of an image and what each takes, as its source says it or its ``--help``: so that nobody guesses. Pure."""

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import PurePosixPath

from msgspec import Struct
from msgspec.structs import replace

from forge.schema.values import Toolchain
from forge.trtllm.help_texts import Option, options

ROOTS = ("/app/examples", "/app/tensorrt_llm/examples")
"""Where images keep them."""
_MAKERS = re.compile(r"(convert|quantize|build|prune|export)\w*\.py")
"""Names of scripts that make what a recipe needs; the others run and measure models."""


class Script(Struct, frozen=True):
    """One script. ``called`` is how a plugin names it; ``flags`` are empty where neither source nor help says any.

    ``asked`` says that they are those of its ``--help``, which leaves none out.
    """

    path: str
    called: str
    flags: tuple[Option, ...] = ()
    asked: bool = False

    @property
    def maker(self) -> bool:
        """Whether it converts, quantizes or builds, by its name."""
        return bool(_MAKERS.fullmatch(PurePosixPath(self.path).name))

    def named(self, word: str) -> bool:
        """Whether a person means it by ``word``: its folder, the end of its path, or all of it."""
        parts = PurePosixPath(self.path).parts
        wanted = PurePosixPath(word).parts
        return word == parts[-2] or parts[-len(wanted) :] == wanted


def found(contents: Mapping[str, bytes], toolchain: Toolchain) -> tuple[Script, ...]:
    """Every program among an image's files, by path, with the flags that its source adds itself."""
    texts = {path: data.decode("utf-8", errors="replace") for path, data in contents.items() if path.endswith(".py")}
    return tuple(
        Script(path, _called(path, toolchain), _added(text)) for path, text in sorted(texts.items()) if "__main__" in text
    )


def asked(script: Script, help_text: str) -> Script:
    """The script with the flags of its ``--help``; the source may know a default that the help leaves out."""
    known = {name: flag for flag in script.flags for name in flag.names}
    said = tuple(
        replace(flag, default=flag.default or next((known[name].default for name in flag.names if name in known), ""))
        for flag in options(help_text)
    )
    return replace(script, flags=said, asked=True) if said else script


def _called(path: str, toolchain: Toolchain) -> str:
    """``trtllm.script(toolchain, "gemma")``, or ``trtllm.tool(...)`` for what stands beside the families."""
    parts = PurePosixPath(path).parts
    if path == f"{toolchain.examples}/{parts[-2]}/{parts[-1]}":
        more = "" if parts[-1] == "convert_checkpoint.py" else f', "{parts[-1]}"'
        return f'trtllm.script(toolchain, "{parts[-2]}"{more})'
    root = toolchain.examples.removesuffix("/models/core")
    return f'trtllm.tool(toolchain, "{path.removeprefix(f"{root}/")}")' if path.startswith(f"{root}/") else ""


def _added(source: str) -> tuple[Option, ...]:
    """What ``add_argument`` is told in a script; one without dashes is no flag."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()
    return tuple(_flags(tree))


def _flags(tree: ast.AST) -> Iterator[Option]:
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"):
            continue
        names = tuple(each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str))
        if not names or not all(name.startswith("-") for name in names):
            continue
        stated = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        bare = _value(stated, "action").startswith("store_")
        takes = "" if bare else names[-1].strip("-").replace("-", "_").upper()
        help_text = " ".join(_value(stated, "help").split())
        yield Option(names, takes, _choices(stated.get("choices")), _value(stated, "default"), help_text)


def _value(stated: Mapping[str, ast.expr], key: str) -> str:
    """A keyword's value as text; an expression as it is written."""
    node = stated.get(key)
    if node is None:
        return ""
    with suppress(ValueError):
        value: object = ast.literal_eval(node)
        return "" if value is None else str(value)
    return ast.unparse(node)


def _choices(node: ast.expr | None) -> tuple[str, ...]:
    if node is None:
        return ()
    with suppress(ValueError, TypeError):
        return tuple(map(str, ast.literal_eval(node)))
    return ()
