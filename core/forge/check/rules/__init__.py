"""The rules of ``forge check``: pure functions over a ``Repository``, and in ``rules.toml`` what each means."""

from forge.check.model import Repository
from forge.check.rules.all_rules import all_rules, examine
from forge.check.rules.rule import Finding, Rule, Severity

__all__ = ["Finding", "Repository", "Rule", "Severity", "all_rules", "examine"]
