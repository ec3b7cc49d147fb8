"""Prompts with checks, their scores, and the same for promptfoo."""

from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace

from forge.bench import promptfoo, quality
from forge.bench.promptfoo import Provider
from forge.bench.quality import Check
from forge.errors import BenchError

FILE = """
[[prompt]]
name = "capital"
text = "What is the capital of France?"
chat = true
max_tokens = 16
check = [{ contains = "paris", ignore_case = true }, { contains = "London", not = true }]

[[prompt]]
name = "digits"
text = "Answer {{ with }} digits:"
check = [{ regex = '^\\d+$' }]

[[prompt]]
name = "object"
text = "JSON, please"
max_tokens = 99
check = [{ json_schema = { type = "object", required = ["a"] } }]

[[prompt]]
name = "yes"
text = "Say yes"
check = [{ exact = "yes" }]
"""


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (Check(contains="Paris"), "It is Paris.", "it is paris"),
        (Check(contains="Paris", ignore_case=True), "PARIS", "London"),
        (Check(regex=r"^\d+$"), " 42\n", "42 apples"),
        (Check(exact="yes"), "yes\n", "yes."),
        (Check(json_schema={}), "[1]", "```json\n[1]\n```"),
        (Check(json_schema={"type": "object", "required": ["a"]}), '{"a": 1}', '{"b": 1}'),
    ],
)
def test_a_check_takes_the_good_and_faults_the_bad(check: Check, good: str, bad: str) -> None:
    assert check.failure(good) == ""
    assert check.failure(bad)
    negated = replace(check, negated=True)
    assert negated.failure(bad) == ""
    assert "must not" in negated.failure(good)


def test_a_prompt_passes_when_all_of_its_checks_do() -> None:
    exams = quality.read(FILE, "q.toml")
    answers = ("Paris, not London", "42", "{}", "yes")
    verdicts = [exam.verdict(answer) for exam, answer in zip(exams, answers, strict=True)]
    assert [each.passed for each in verdicts] == [False, True, False, True]
    assert verdicts[0].failed == ("must not: contains 'London'",)
    assert "'a' is a required property" in verdicts[2].failed[0]
    found = quality.scored(verdicts)
    assert found.score == 0.5
    assert 0 < found.low < 0.5 < found.high < 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[prompt]", "no TOML"),
        ("prompt = []", "no prompts"),
        (FILE.replace("contains = ", "contain = ", 1), "contain"),
        (FILE.replace('exact = "yes"', 'exact = "yes", regex = "y"'), "exactly one"),
        (FILE.replace(r"^\d+$", "("), "regular expression"),
        (FILE.replace('"object", required', '"thing", required'), "no JSON schema"),
        (FILE.replace('name = "yes"', 'name = "digits"'), "one name"),
        (FILE.replace('text = "Say yes"', ""), "text or messages"),
        (FILE.replace("check = [{ exact", "check = [] #"), "no check"),
        (FILE.replace('{ exact = "yes"', '{ exact = "yes", ignore_case = true'), "ignore_case"),
    ],
)
def test_a_quality_file_with_a_mistake_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(BenchError, match=complaint):
        quality.read(text, "q.toml")


@pytest.mark.parametrize("text", ["[[prompt]", "a = \0", "a = " + "[" * 100_000], ids=["not closed", "a NUL", "deep"])
def test_a_quality_file_that_is_no_toml_is_explained(text: str) -> None:
    with pytest.raises(BenchError) as caught:
        quality.read(text, "q.toml")
    assert caught.value.where.startswith("q.toml")
    assert caught.value.hint


def test_a_regular_expression_python_cannot_take_is_refused_in_words() -> None:
    for regex in ("(" * 5_000 + ")" * 5_000, "a{99999999999999999999}"):
        with pytest.raises(BenchError, match="is no regular expression"):
            quality.read(FILE.replace(r"^\d+$", regex), "q.toml")


def test_promptfoo_gets_the_same_prompts_checks_and_settings() -> None:
    exams = quality.read(FILE, "q.toml")
    prompts = [(exam, f"<{exam.text}>" if exam.chat else exam.text) for exam in exams]
    providers = [Provider(f"temperature={t}", "http://h:8000/v2/models/m/generate", {"temperature": t}) for t in (0.2, 0.7)]
    document = yaml.safe_load(promptfoo.configuration(prompts, providers))
    assert document["prompts"] == ["{{text}}"]
    assert [each["label"] for each in document["providers"]] == ["temperature=0.2", "temperature=0.7"]
    body = document["providers"][1]["config"]["body"]
    assert body == {"text_input": "{{prompt}}", "max_tokens": 99, "temperature": 0.7}
    assert [test["assert"] for test in document["tests"]] == [
        [{"type": "icontains", "value": "paris"}, {"type": "not-contains", "value": "London"}],
        [{"type": "regex", "value": r"^\d+$"}],
        [{"type": "is-json", "value": {"type": "object", "required": ["a"]}}],
        [{"type": "equals", "value": "yes"}],
    ]
    assert document["tests"][0]["vars"]["text"] == "<What is the capital of France?>"
    assert document["tests"][1]["vars"]["text"] == "{% raw %}Answer {{ with }} digits:{% endraw %}"


def test_the_documented_quality_file_can_be_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    example = page.split("```toml\n")[1].split("```")[0]
    assert len(quality.read(example, "docs/bench.md")) >= 2
