"""All rules, and how a repository is held against them."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import cast

import msgspec

from forge.check.model import Repository
from forge.check.rules.rule import Finding, Found, Look, Rule, Severity
from forge.files import texts

_ORDER = tuple(Severity)


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    rule: tuple[Rule, ...]


@cache
def all_rules() -> tuple[Rule, ...]:
    """All rules, in the order in which docs/rules.md has them."""
    return texts.shipped("forge.check.rules", "rules.toml", _Table).rule


def examine(repository: Repository) -> tuple[Finding, ...]:
    """Everything that the rules find in ``repository``, the gravest first."""
    found = [_finding(repository, rule, each) for rule in all_rules() for each in _look(rule)(repository)]
    return tuple(sorted(found, key=lambda each: _ORDER.index(each.severity)))


@cache
def _names() -> Mapping[str, object]:
    """All that stands in the files beside this one: the function of a rule has the rule's id as its name."""
    beside = (import_module(f"{__package__}.{each.name}") for each in iter_modules([str(Path(__file__).parent)]))
    return {name: held for place in beside for name, held in vars(place).items()}


def _look(rule: Rule) -> Look:
    return cast("Look", _names()[rule.id.replace("-", "_")])


def _finding(repository: Repository, rule: Rule, found: Found) -> Finding:
    fix = found.fix or rule.fix
    return Finding(rule.id, rule.severity, found.file, found.line or _line(repository, found), found.what, fix, rule.fixable)


def _line(repository: Repository, found: Found) -> int:
    """The line of a config or a Python file in which the needle stands first."""
    folder, _, path = found.file.partition("/")
    model = repository.by_folder.get(folder)
    if model is None or not found.needle:
        return 0
    text = model.text if path == "config.pbtxt" else model.sources.get(path, "")
    before, hit, _ = text.partition(found.needle)
    return before.count("\n") + 1 if hit else 0
