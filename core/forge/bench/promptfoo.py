"""A quality file as a promptfoo configuration: its HTTP provider asks Triton's generate endpoint.

Names of assertions and of the provider's keys: https://www.promptfoo.dev/docs/configuration/expected-outputs/deterministic/ and
https://www.promptfoo.dev/docs/providers/http/.
"""

import json
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from forge.bench.quality import Check, Exam
from forge.schema.values import Scalar

_TYPES = {"contains": "contains", "regex": "regex", "json_schema": "is-json", "exact": "equals"}


class Provider(Struct, frozen=True):
    """One setting of one model: where it is asked (an URL), and the inputs besides its prompt, by Triton's names."""

    label: str
    url: str
    inputs: Mapping[str, Scalar | list[Scalar]]
    stops: tuple[str, ...] = ()
    """Texts before which an answer ends."""


def configuration(exams: Sequence[tuple[Exam, str]], providers: Sequence[Provider]) -> str:
    """YAML; each exam comes with its prompt as it is sent. Every answer may be as long as the longest that an exam allows.

    promptfoo's ``equals`` compares the answer as it came; so that white space around it does not count here either, the
    provider trims it.
    """
    longest = max(exam.max_tokens for exam, _ in exams)
    document = {
        "description": "exported by forge bench",
        "prompts": ["{{text}}"],
        "providers": [_provider(each, longest) for each in providers],
        "tests": [
            {
                "description": exam.name,
                "vars": {"text": _literal(text)},
                "assert": [_assertion(check) for check in exam.check],
            }
            for exam, text in exams
        ],
    }
    return msgspec.yaml.encode(document).decode()


def _provider(each: Provider, longest: int) -> dict[str, object]:
    return {
        "id": "https",
        "label": each.label,
        "config": {
            "url": each.url,
            "method": "POST",
            "headers": {"Content-Type": "application/json"},
            "body": {"text_input": "{{prompt}}", "max_tokens": longest, **each.inputs},
            "transformResponse": f"json.text_output{''.join(f'.split({json.dumps(stop)})[0]' for stop in each.stops)}.trim()",
        },
    }


def _assertion(check: Check) -> dict[str, object]:
    kind = "icontains" if check.ignore_case else _TYPES[check.kind]
    value: object = getattr(check, check.kind)
    if check.exact is not None:
        value = check.exact.strip()
    return {"type": f"not-{kind}" if check.negated else kind, "value": value}


def _literal(text: str) -> str:
    """promptfoo fills in what stands in double braces, in values too: such a text is marked as not to be read so."""
    return f"{{% raw %}}{text}{{% endraw %}}" if "{{" in text or "{%" in text else text
