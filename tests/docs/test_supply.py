"""What forge installs for servers is audited: the workflow asks about every pin, and tells what forge itself stands on."""

import re
import runpy
from importlib.resources import files
from pathlib import Path

import yaml

from forge.schema.twin_environment import PACKAGES, TRITON

ROOT = Path(__file__).parents[2]


def test_every_pin_of_every_environment_is_written_for_the_audit(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / ".ci" / "pins.py"))["main"](tmp_path)
    written = {file.name: file.read_text().splitlines() for file in tmp_path.iterdir()}
    assert written.pop("twin.txt") == [*PACKAGES, TRITON]
    shipped = {each.name for each in files("forge.schema").iterdir() if each.name.endswith(".txt")}
    assert written.keys() == shipped
    for name, lines in written.items():
        text = (files("forge.schema") / name).read_text(encoding="utf-8")
        assert len(lines) == len([line for line in text.splitlines() if line.strip() and not line.startswith("#")])
        assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", line)] == []


def test_the_workflow_makes_an_sbom_and_audits_forge_and_pins() -> None:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["supply"]
    run = "\n".join(step.get("run", "") for step in job["steps"])
    assert "cyclonedx-py environment .venv" in run
    assert ".ci/pins.py pins" in run
    assert "pip freeze" in run
    assert 'pip-audit --requirement "$file"' in run
    kept = [step["with"]["path"] for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact@")]
    assert kept == [re.findall(r"--output-file (\S+)", run)[0]]
