"""The rules of ``forge check``: pure functions over a ``Repository``, in one tuple. docs/rules.md says what each means."""

from forge.check.model import Repository
from forge.check.rules.registry import RULES, examine
from forge.check.rules.rule import Finding, Rule, Severity

__all__ = ["RULES", "Finding", "Repository", "Rule", "Severity", "examine"]
