"""All rules, and how a repository is held against them."""

from functools import cache
from importlib import resources

import msgspec

from forge.check.model import Repository
from forge.check.rules import (
    adapters,
    control,
    decoupled,
    engine,
    ensembles,
    layout,
    names,
    neighbours,
    parameters,
    placeholders,
    speculation,
    terms,
    tokenizer,
    vllm,
)
from forge.check.rules.rule import Finding, Found, Looks, Rule, Severity

_LOOKS: Looks = {
    **placeholders.LOOKS,
    **parameters.LOOKS,
    **names.LOOKS,
    **ensembles.LOOKS,
    **decoupled.LOOKS,
    **terms.LOOKS,
    **engine.LOOKS,
    **speculation.LOOKS,
    **adapters.LOOKS,
    **neighbours.LOOKS,
    **vllm.LOOKS,
    **tokenizer.LOOKS,
    **layout.LOOKS,
    **control.LOOKS,
}
_ORDER = tuple(Severity)


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    rule: tuple[Rule, ...]


@cache
def all_rules() -> tuple[Rule, ...]:
    """All rules, in the order in which docs/rules.md has them."""
    text = (resources.files("forge.check.rules") / "rules.toml").read_text(encoding="utf-8")
    return msgspec.toml.decode(text, type=_Table).rule


def examine(repository: Repository) -> tuple[Finding, ...]:
    """Everything that the rules find in ``repository``, the gravest first."""
    found = [_finding(repository, rule, each) for rule in all_rules() for each in _LOOKS[rule.id](repository)]
    return tuple(sorted(found, key=lambda each: _ORDER.index(each.severity)))


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
