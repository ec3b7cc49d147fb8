"""docs/rules.md says of every rule what the registry says, and nothing else.

FORGE_REWRITE_DOCS=1 writes it anew: `FORGE_REWRITE_DOCS=1 pytest tests/docs/test_docs_rules.py`, then read the diff.
"""

import os
import re
from pathlib import Path

from forge.check.rules import Rule, all_rules

PAGE = Path(__file__).parents[2] / "docs" / "rules.md"
REWRITE = "FORGE_REWRITE_DOCS"
HEAD = """# What `forge check` looks for

`forge check [REPOSITORY]` reads a Triton model repository, forge's own or any other, and holds it against the rules below.
It starts nothing and loads nothing. The exit code is 8 when a rule of severity **error** is broken, otherwise 0.

- **error**: a model does not load, or does not answer.
- **warning**: some requests fail, or something that was asked for is ignored.
- **remark**: right or wrong by what one wants.

Rules marked *fixable* are fixed by `--fix`, which says what it changed. It writes config.pbtxt anew from its protobuf
message, so comments are lost; files of weights are never touched. `--sarif FILE` writes the findings for code hosts.
`--image 25.08` names the serving image where forge.json does not.

| rule | severity | what is wrong |
| --- | --- | --- |
"""


def row(rule: Rule) -> str:
    return f"| [{rule.id}](#{rule.id}) | {rule.severity} | {rule.title} |\n"


def section(rule: Rule) -> str:
    marked = f"*{rule.severity}{', fixable' if rule.fixable else ''}*: {rule.title}."
    return f"\n## {rule.id}\n\n{marked}\n\n{rule.why}\n\nIn Triton:\n\n```text\n{rule.fails}\n```\n\nThe fix: {rule.fix}.\n"


def test_the_page_is_the_registry() -> None:
    page = HEAD + "".join(map(row, all_rules())) + "".join(map(section, all_rules()))
    if os.environ.get(REWRITE) == "1":
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page


def test_every_rule_says_why_how_it_fails_and_the_fix() -> None:
    for rule in all_rules():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.id)
        assert min(len(rule.title), len(rule.fails), len(rule.fix)) > 10, rule.id
        assert rule.why.endswith("."), rule.id
        assert not rule.title.endswith("."), rule.id
        assert not rule.fix.endswith("."), rule.id
