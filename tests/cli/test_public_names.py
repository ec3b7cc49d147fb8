"""The face of forge: what a plugin imports, and what importing it costs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import forge

STUB = Path(forge.__file__).with_suffix(".pyi")


def test_type_checkers_and_python_see_the_same_names() -> None:
    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    imported = {(node.module, alias.name) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {name for _, name in imported} == set(forge.__all__)
    for module, name in imported:
        assert getattr(forge, name) is getattr(sys.modules[str(module)], name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = forge.nothing_like_it  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def test_the_name_of_before_says_where_it_went() -> None:
    workshop = importlib.import_module("forge.workshop")
    with pytest.warns(DeprecationWarning, match=r"forge\.workshop\.Workshop is forge\.Forge now"):
        assert workshop.Workshop is forge.Forge
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = workshop.nothing_like_it


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from forge.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.stderr.write(' '.join(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "forge run smollm2-135m-instruct" in done.stdout
    heavy = {
        "structlog", "rich", "docker", "huggingface_hub", "tritonclient", "transformers", "numpy", "msgspec", "pluggy",
        "google.protobuf", "grpc", "jinja2", "platformdirs", "blake3", "filelock", "asyncio",
    }  # fmt: skip
    assert heavy & set(done.stderr.split()) == set()
