"""A check's findings as SARIF 2.1.0, which code hosts show beside the files. Pure: values in, text out.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

import json
from collections.abc import Iterable
from urllib.parse import quote

from forge.check.rules import Finding, Rule, Severity, all_rules

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.REMARK: "note"}
ROOT = "REPOSITORY"
"""SARIF's name for the folder that all paths are relative to."""


def write(findings: Iterable[Finding], repository: str, version: str) -> str:
    """One run of forge, ``version`` its own, over the model repository in the folder ``repository``."""
    index = {rule.id: at for at, rule in enumerate(all_rules())}
    run = {
        "tool": {
            "driver": {
                "name": "forge",
                "version": version,
                "semanticVersion": version,
                "rules": [_rule(rule) for rule in all_rules()],
            }
        },
        "originalUriBaseIds": {ROOT: {"uri": f"file://{quote(repository)}/"}},
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, index[finding.rule]) for finding in findings],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(rule: Rule) -> dict[str, object]:
    return {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in rule.id.split("-")),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"In Triton:\n{rule.fails}\n\nThe fix: {rule.fix}"},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }


def _result(finding: Finding, index: int) -> dict[str, object]:
    inside = not finding.file.startswith("/")
    artifact = {"uri": quote(finding.file), "uriBaseId": ROOT} if inside else {"uri": f"file://{quote(finding.file)}"}
    place: dict[str, object] = {"artifactLocation": artifact}
    if finding.line:
        place["region"] = {"startLine": finding.line}
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": LEVELS[finding.severity],
        "message": {"text": f"{finding.what}. {finding.fix}"},
        "locations": [{"physicalLocation": place}],
    }
