"""The rules of ``forge check``: pure functions over a ``Repository``, in one tuple. docs/rules.md says what each means."""

from forge.rules.registry import RULES, examine
from forge.rules.rule import Finding, Rule, Severity
from forge.rules.seen import Repository

__all__ = ["RULES", "Finding", "Repository", "Rule", "Severity", "examine"]
