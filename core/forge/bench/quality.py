"""Quality: prompts with checks, and how answers do on them."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from forge.bench import intervals
from forge.bench.prompts import Message
from forge.bench.results import Quality, Verdict
from forge.errors import BenchError, HostError, RecipeError
from forge.recipe.validate import document

_KINDS = ("contains", "regex", "json_schema", "exact")


class Check(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"negated": "not"}, omit_defaults=True):
    """One thing that an answer must be; exactly one of the first four is set. White space around an answer does not count."""

    contains: str | None = None
    regex: str | None = None
    """Python's syntax; found anywhere in the answer."""
    json_schema: dict[str, object] | None = None
    """The answer is JSON, nothing else, and fits; ``{}`` takes any JSON."""
    exact: str | None = None
    negated: bool = False
    ignore_case: bool = False
    """For ``contains``."""

    @property
    def kind(self) -> str:
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    def failure(self, answer: str) -> str:
        """What is wrong with ``answer`` in words; empty where nothing is."""
        wrong = self._wrong(answer.strip())
        if not self.negated:
            return wrong
        return "" if wrong else f"must not: {self.kind} {_shown(getattr(self, self.kind))}"

    def _wrong(self, answer: str) -> str:
        if self.contains is not None:
            within, sought = (answer.lower(), self.contains.lower()) if self.ignore_case else (answer, self.contains)
            return "" if sought in within else f"does not contain {_shown(self.contains)}"
        if self.regex is not None:
            return "" if re.search(self.regex, answer) else f"does not match {_shown(self.regex)}"
        if self.exact is not None:
            return "" if answer == self.exact.strip() else f"is not {_shown(self.exact)}"
        return _misfit(answer, self.json_schema or {})


class Exam(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prompt with its checks: ``text``, or ``messages`` for the chat template; ``chat`` puts ``text`` into it."""

    name: str
    text: str = ""
    messages: tuple[Message, ...] = ()
    chat: bool = False
    max_tokens: Annotated[int, Meta(ge=1)] = 64
    check: tuple[Check, ...]

    def verdict(self, answer: str) -> Verdict:
        failed = tuple(wrong for check in self.check if (wrong := check.failure(answer)))
        return Verdict(name=self.name, passed=not failed, answer=answer, failed=failed)


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    prompt: tuple[Exam, ...]


def read(text: str, where: str) -> tuple[Exam, ...]:
    """The prompts of a quality file (TOML); BenchError names the prompt and what is wrong with it."""
    try:
        exams = msgspec.convert(document(text, where, "quality file"), _File).prompt
    except RecipeError as error:  # it was the reader of TOML that looked
        (found,) = error.problems
        raise BenchError(found.what, where=found.where, hint=found.hint) from error
    except msgspec.ValidationError as error:
        raise BenchError(str(error), where=where, hint="see docs/bench.md for what a quality file holds") from error
    if not exams:
        raise BenchError("there are no prompts", where=where)
    for exam in exams:
        for problem in _problems(exam):
            raise BenchError(problem, where=f"{where}: {exam.name}")
    if len({exam.name for exam in exams}) < len(exams):
        raise BenchError("two prompts have one name", where=where)
    return exams


def _problems(exam: Exam) -> Iterator[str]:
    if bool(exam.text) == bool(exam.messages):
        yield "either text or messages must stand there"
    if not exam.check:
        yield "there is no check"
    for check in exam.check:
        stated = [kind for kind in _KINDS if getattr(check, kind) is not None]
        if len(stated) != 1:
            yield f"a check has exactly one of {', '.join(_KINDS)}; here: {', '.join(stated) or 'none'}"
            return
        if check.ignore_case and check.contains is None:
            yield "ignore_case goes with contains; a regex begins with (?i)"
        if check.regex is not None:
            try:
                re.compile(check.regex)
            except (re.error, RecursionError, OverflowError) as error:
                yield f"{_shown(check.regex)} is no regular expression: {error}"
        if check.json_schema is not None:
            yield from _schema_problems(check.json_schema)


def scored(verdicts: Sequence[Verdict]) -> Quality:
    """How many passed, with the interval."""
    share = intervals.proportion(sum(each.passed for each in verdicts), len(verdicts))
    return Quality(
        score=share.value, low=share.low or 0.0, high=1.0 if share.high is None else share.high, verdicts=tuple(verdicts)
    )


def _schema_problems(schema: dict[str, object]) -> Iterator[str]:
    try:
        import jsonschema
    except ImportError as error:
        raise HostError(
            "jsonschema is not installed, which a json_schema check needs", hint="pip install 'triton-forge[bench]'"
        ) from error
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        yield f"json_schema is no JSON schema: {error.message}"


def _misfit(answer: str, schema: dict[str, object]) -> str:
    import jsonschema

    try:
        document = json.loads(answer)
    except ValueError:
        return "is no JSON"
    try:
        jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)
    except jsonschema.ValidationError as error:
        return f"does not fit the schema: {error.message}"
    return ""


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
