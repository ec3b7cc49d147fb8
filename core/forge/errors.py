"""What forge says when it cannot go on.

Every error is one of a family, and every family has one exit code (documented in docs/exit-codes.md). A message says what
happened; ``where`` names the file, key or address; ``hint`` says what to do next.
"""

from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

_TELLING = 3
"""Letters of a part of a name that say which is meant."""


class Problem(Struct, frozen=True):
    """One thing that is wrong: where it stands, what is wrong with it, and the fix."""

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n    {self.hint}" if self.hint else "")

    def within(self, place: str) -> "Problem":
        """The same, where that is a part of a larger ``place``."""
        return Problem(f"{place}: {self.where}", self.what, self.hint)


def near(word: str, known: Iterable[str]) -> str:
    """The one of ``known`` that was probably meant by ``word``: the most alike, or one that begins with it or holds it."""
    from difflib import get_close_matches  # only an error needs it

    plain, names = word.casefold(), {each.casefold(): each for each in sorted(known)}
    holding = [each for each in sorted(names, key=lambda each: not each.startswith(plain)) if plain in each]
    close = get_close_matches(plain, names, 1) or (holding if len(plain) >= _TELLING else [])
    return names[close[0]] if close else ""


def meant(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The same as a question, or ``otherwise`` where nothing is near."""
    return f"did you mean {close!r}?" if (close := near(word, known)) else otherwise


class ForgeError(Exception):
    """Anything a person can fix; shown in a few lines, without a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint
        self.step = ""
        """The step of a build in which it happened; whoever runs the steps says so."""

    def __str__(self) -> str:
        located = f"{self.where}: {self.what}" if self.where else self.what
        if self.step and self.step not in located:
            located = f"{self.step}: {located}"
        return "\n    ".join((located, *self._more(), *([self.hint] if self.hint else [])))

    def _more(self) -> tuple[str, ...]:
        """Further lines between what happened and what to do."""
        return ()


class RecipeError(ForgeError):
    """A recipe says what forge cannot build; it carries every problem found, not the first."""

    exit_code = 3

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class PluginError(ForgeError):
    """A plugin is missing, broken, raised, or answered with the wrong type.

    ``where`` is the file and line of its own that is at fault, ``source`` that line as it stands there, after its number;
    ``distribution`` is what was installed, with its version. Each is empty where nobody knows it. What a plugin raised is the
    error's ``__cause__``.
    """

    exit_code = 4

    def __init__(  # noqa: PLR0913 - each is told apart
        self, plugin: str, hook: str, problem: str, *, hint: str = "", where: str = "", source: str = "", distribution: str = ""
    ) -> None:
        owner = f" of {distribution}" if distribution else ""
        super().__init__(f"plugin {plugin!r}{owner} failed in {hook}: {problem}", where=where, hint=hint)
        self.plugin = plugin
        self.hook = hook
        self.problem = problem
        self.source = source
        self.distribution = distribution

    def _more(self) -> tuple[str, ...]:
        return (self.source,) if self.source else ()


class SourceError(ForgeError):
    """A checkpoint cannot be had: not found, gated, broken, pickled, or out of reach."""

    exit_code = 5


class StoreError(ForgeError):
    """The store cannot keep or give an artifact: disk full, no permission, damaged."""

    exit_code = 6


class StepError(ForgeError):
    """A step ran and did not make what it promised."""

    exit_code = 7


class RepositoryError(ForgeError):
    """A model repository or a config.pbtxt cannot be made as asked."""

    exit_code = 8


class ServerError(ForgeError):
    """Triton did not start, did not become ready, or is not there."""

    exit_code = 9


class Trouble(StrEnum):
    """Whose fault it is that a served model did not answer, as far as that can be known."""

    OTHER = "other"
    AWAY = "away"
    UNKNOWN = "unknown"
    """The server is there, and offers no such model."""
    LATE = "late"
    BUSY = "busy"
    """The server is well, and as many requests wait as may."""
    DEAD = "dead"
    """The process of the model, or of one that it calls, has ended or does not move."""


class InferenceError(ForgeError):
    """A served model refused or failed a request."""

    exit_code = 10

    def __init__(self, what: str, *, where: str = "", hint: str = "", trouble: Trouble = Trouble.OTHER) -> None:
        super().__init__(what, where=where, hint=hint)
        self.trouble = trouble


class HostError(ForgeError):
    """This machine lacks something that the work needs: Docker, a GPU, a Python, disk."""

    exit_code = 11


class LockError(ForgeError):
    """A recipe's lock is missing or stale and ``--locked`` forbids moving it."""

    exit_code = 12


class VerifyError(ForgeError):
    """What is served differs from the checkpoint by more than is allowed; where it stands in a build, nothing is published."""

    exit_code = 13


class BenchError(ForgeError):
    """A benchmark cannot be run or compared as asked: an unusable input file, unlike results, a figure that is not there."""

    exit_code = 15


class LimitError(ForgeError):
    """A measured figure is beyond a limit of ``--fail-if``."""

    exit_code = 16


class ConfidenceError(ForgeError):
    """An answer's log-probability is below the caller's ``--min-logprob``."""

    exit_code = 17


class ConfigError(ForgeError):
    """The config file or a FORGE_* variable says what forge does not know; it carries every problem found."""

    exit_code = 18

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
