"""All rules, in the order in which docs/rules.md has them, and how a repository is held against them."""

from forge.check.model import Repository
from forge.check.rules import (
    adapters,
    control,
    decoupled,
    engine,
    ensembles,
    fleet,
    layout,
    names,
    parameters,
    placeholders,
    speculation,
    terms,
    tokenizer,
    vllm,
)
from forge.check.rules.rule import Finding, Found, Rule, Severity

RULES: tuple[Rule, ...] = (
    *placeholders.RULES,
    *parameters.RULES,
    *names.RULES,
    *ensembles.RULES,
    *decoupled.RULES,
    *terms.RULES,
    *engine.RULES,
    *speculation.RULES,
    *adapters.RULES,
    *fleet.RULES,
    *vllm.RULES,
    *tokenizer.RULES,
    *layout.RULES,
    *control.RULES,
)

_ORDER = tuple(Severity)


def examine(repository: Repository, rules: tuple[Rule, ...] = RULES) -> tuple[Finding, ...]:
    """Everything that ``rules`` find in ``repository``, the gravest first."""
    found = [_finding(repository, rule, each) for rule in rules for each in rule.look(repository)]
    return tuple(sorted(found, key=lambda each: _ORDER.index(each.severity)))


def _finding(repository: Repository, rule: Rule, found: Found) -> Finding:
    mend = found.mend or rule.mend
    return Finding(rule.id, rule.severity, found.file, found.line or _line(repository, found), found.what, mend, rule.fixable)


def _line(repository: Repository, found: Found) -> int:
    """The line of a config or a Python file in which the needle stands first."""
    folder, _, path = found.file.partition("/")
    model = repository.by_folder.get(folder)
    if model is None or not found.needle:
        return 0
    text = model.text if path == "config.pbtxt" else model.sources.get(path, "")
    before, hit, _ = text.partition(found.needle)
    return before.count("\n") + 1 if hit else 0
