"""What a rule is, and what it finds."""

from collections.abc import Callable, Iterable
from enum import StrEnum

import msgspec
from msgspec import Struct

from forge.check.model import Repository


class Severity(StrEnum):
    """``error``: a model does not load or does not answer. ``warning``: some requests fail or something is ignored.
    ``remark``: right or wrong by what one wants."""

    ERROR = "error"
    WARNING = "warning"
    REMARK = "remark"


class Found(Struct, frozen=True):
    """One place where a rule is broken. ``needle`` is a text in ``file`` by which the line is found."""

    file: str
    what: str
    fix: str = ""
    """What to change here; the rule's own words where empty."""
    needle: str = ""
    line: int = 0
    """From 1, where it is known without a needle."""


Look = Callable[[Repository], Iterable[Found]]
"""Finds where a rule is broken."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way in which a repository can be wrong, and all that docs/rules.md says of it: a row of ``rules.toml``."""

    id: str
    severity: Severity
    title: str
    why: str
    fails: str
    """What one sees in Triton: the words of its log or of its answer."""
    fix: str
    fixable: bool = False
    """Whether ``forge check --fix`` fixes it."""


class Finding(Struct, frozen=True):
    """What ``forge check`` says: which rule, how grave, where (``line`` from 1, 0 where no line can be named), and the fix."""

    rule: str
    severity: Severity
    file: str
    line: int
    what: str
    fix: str
    fixable: bool = False
