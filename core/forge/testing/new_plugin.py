"""A new plugin's distribution, written from the template in ``template``: what passes its own tests, to begin with."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from forge import hookspecs
from forge.errors import ForgeError
from forge.plan import families

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MOST = 64
"""Characters of a name, which goes into the names of files and modules."""
_FILES = {
    "pyproject.toml": "pyproject.toml.template",
    "README.md": "README.md.template",
    "{{module}}/__init__.py": "plugin.py.template",
    "tests/test_{{word}}.py": "test_plugin.py.template",
}
"""Each file of the distribution -> what it is written from."""


def new_plugin(name: str, architectures: Sequence[str], scripts: str = "", folder: Path | None = None) -> tuple[Path, ...]:
    """Write the distribution of a family ``name`` that serves ``architectures``, and say which files it is.

    ``scripts`` is the folder of its conversion script in NVIDIA's image, ``name`` unless stated; ``folder`` becomes the
    distribution's, ``forge-NAME`` unless stated. ForgeError where a name will not do, or where something stands there already.
    """
    _check(name, architectures, scripts)
    place = folder if folder is not None else Path(f"forge-{name}")
    texts = _texts(_words(name, architectures, scripts or name))
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ForgeError("there is something already", where=str(place), hint="choose another folder with --output")
    for file, text in texts.items():
        target = place / file
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as sink:
            sink.write(text)
    return tuple(place / file for file in texts)


def _check(name: str, architectures: Sequence[str], scripts: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _MOST:
        hint = "lower-case letters and digits, with '-' between words, beginning with a letter: internlm, my-model"
        raise ForgeError(f"{name!r} cannot be a family's name", hint=hint)
    if name in families.names():
        raise ForgeError(f"there is a plugin {name!r} already", hint="choose another name; `forge plugins` shows them all")
    if wrong := [each for each in architectures if not each.isidentifier() or not each.isascii()]:
        hint = "it stands under `architectures` in the checkpoint's config.json, like LlamaForCausalLM"
        raise ForgeError(f"{wrong[0]!r} cannot be an architecture", hint=hint)
    if scripts and not _FOLDER.fullmatch(scripts):
        raise ForgeError(f"{scripts!r} cannot be a folder of scripts", hint="one folder's name; `forge toolchain` lists them")


def _words(name: str, architectures: Sequence[str], scripts: str) -> dict[str, str]:
    word = name.replace("-", "_")
    return {
        "name": name,
        "word": word,
        "module": f"forge_{word}",
        "distribution": f"forge-{name}",
        "architectures": ", ".join(architectures),
        "quoted": ", ".join(f'"{each}"' for each in architectures) + ("," if len(architectures) == 1 else ""),
        "scripts": scripts,
        "api": str(hookspecs.API),
    }


def _texts(words: Mapping[str, str]) -> dict[str, str]:
    shelf = resources.files("forge.testing") / "template"
    return {_filled(file, words): _filled((shelf / held).read_text(encoding="utf-8"), words) for file, held in _FILES.items()}


def _filled(text: str, words: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], text)
