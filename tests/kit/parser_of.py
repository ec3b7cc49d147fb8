"""Runs one of NVIDIA's scripts as far as its argparse: ``python parser_of.py SCRIPT WORDS...``, 0 where it takes the words.

Nothing that the script imports has to be here: whatever is not Python's own is a stub that takes everything.
trtllm-build's flags for plugins come from plugin.py beside it.
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import runpy
import sys
import types
from pathlib import Path
from typing import Any


class _Everything(type):
    """Any attribute, call and choice."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing

    def __iter__(cls) -> Any:
        return iter(())

    def __contains__(cls, item: object) -> bool:
        return True

    def __getitem__(cls, item: object) -> Any:
        return Nothing

    def __call__(cls, *given: Any, **named: Any) -> Any:
        """As itself it is a decorator that changes nothing; a class that inherits from it is made as usual."""
        if cls is Nothing:
            return given[0] if len(given) == 1 and callable(given[0]) and not named else Nothing
        return super().__call__(*given, **named)


class Nothing(metaclass=_Everything):
    pass


class _Module(types.ModuleType):
    __path__ = ()  # type: ignore[assignment]
    __all__: tuple[str, ...] = ()
    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        own = name.partition(".")[0] in sys.stdlib_module_names
        return None if own else importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _plugins(file: Path) -> None:
    """plugin.py itself, where tensorrt_llm.plugin is asked for."""
    name = "tensorrt_llm.plugin"
    spec = importlib.util.spec_from_file_location(f"{name}.plugin", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    importlib.import_module(name)
    sys.modules[f"{name}.plugin"] = sys.modules[name] = module
    spec.loader.exec_module(module)


def main() -> None:
    sys.meta_path.insert(0, _Stubs())
    del sys.argv[0]
    script = Path(sys.argv[0])
    if (plugins := script.parent.parent / "plugin" / "plugin.py").is_file():
        _plugins(plugins)
    parse = argparse.ArgumentParser.parse_args

    def once(parser: argparse.ArgumentParser, *given: Any) -> Any:
        parse(parser, *given)
        raise SystemExit(0)

    argparse.ArgumentParser.parse_args = once  # type: ignore[assignment,method-assign]
    found = runpy.run_path(str(script), run_name="__main__" if script.name != "build.py" else "build")
    found["parse_arguments"]().parse_args()


if __name__ == "__main__":
    main()
