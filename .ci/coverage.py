"""Runs the tests (`.ci/coverage.py PYTEST-ARGUMENTS`) and says how much of each package ran, in every process of this Python.

What forge starts gets an environment that forge chooses, so processes are told by a .pth file in this virtual environment;
it is there only meanwhile. A process that SIGTERM ends says what ran in it too (uvicorn raises it again once it has obeyed).
What runs under another Python (Triton's own, in its serving environment or in a container) counts where tests load it into
theirs.
"""

import json
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
RC = """[run]
sigterm = true
source =
    {root}/core/forge
    {root}/plugins
data_file = {scratch}/data
parallel = true
disable_warnings = no-data-collected,module-not-imported,couldnt-parse
[report]
exclude_also =
    ^\\s*\\.\\.\\.$
    \\.\\.\\.$
    class .*\\(Protocol\\)
    if __name__ == "__main__"
"""
START = 'import os; os.environ["COVERAGE_PROCESS_START"] = "{rc}"; import coverage; coverage.process_startup()\n'


def main() -> int:
    note = Path(sysconfig.get_path("purelib")) / "forge_coverage.pth"
    with tempfile.TemporaryDirectory(prefix="forge-coverage-") as scratch:
        rc = Path(scratch) / "rc"
        rc.write_text(RC.format(root=ROOT, scratch=scratch), encoding="utf-8")
        note.write_text(START.format(rc=rc), encoding="utf-8")
        try:
            tests = subprocess.run((sys.executable, "-m", "pytest", *sys.argv[1:]), check=False).returncode
        finally:
            note.unlink()
        tool = (sys.executable, "-m", "coverage")
        subprocess.run((*tool, "combine", "--quiet", f"--rcfile={rc}"), check=False)
        subprocess.run((*tool, "json", "--quiet", f"--rcfile={rc}", "-o", f"{scratch}/report"), check=True)
        files = json.loads((Path(scratch) / "report").read_text(encoding="utf-8"))["files"]
    sys.stdout.write(
        table({name: (row["summary"]["covered_lines"], row["summary"]["num_statements"]) for name, row in files.items()})
    )
    return tests


def table(files: dict[str, tuple[int, int]]) -> str:
    """How many of the statements ran: of each package, of the files that are darkest, and of all."""
    packages: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, (ran, all_of_it) in files.items():
        parts = Path(name).relative_to(ROOT).parts if Path(name).is_absolute() else Path(name).parts
        for package in ("/".join(parts[1:3]) if len(parts) > 3 else parts[1], "all"):
            packages[package][0] += ran
            packages[package][1] += all_of_it
    rows = [
        f"{100 * ran / max(total, 1):5.1f} %  {total - ran:5d} of {total:5d} did not run  {name}"
        for name, (ran, total) in packages.items()
    ]
    dark = sorted(files, key=lambda name: files[name][0] - files[name][1])[:12]
    darkest = [f"{files[name][1] - files[name][0]:5d} of {files[name][1]:5d} did not run  {name}" for name in dark]
    return "\n".join(["", "Coverage by package", *rows, "", "The darkest files", *darkest, ""])


if __name__ == "__main__":
    raise SystemExit(main())
