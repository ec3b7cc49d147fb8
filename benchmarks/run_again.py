"""How long `forge run` takes to its prompt where the model is served already, beside the imports that it cannot do without.

python benchmarks/run_again.py [RECIPE]     builds and serves RECIPE (a shipped one's name), and stops it again

Medians of several by turns: a slow minute is everybody's. Beside them, once, the first `forge run` of what is built already,
which starts Triton and loads the model.
"""

import os
import pty
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROUNDS = 7
MOST = 5.0
FORGE = str(Path(sys.executable).with_name("forge"))
IMPORTS = [sys.executable, "-c", "import click, msgspec, tomli, pluggy, grpc, tritonclient.grpc, jinja2, tokenizers"]
PROMPT = re.compile(rb"[\r\n](\x1b\[\?2004h)?> $")


def seconds(command: list[str], environ: Mapping[str, str]) -> float:
    """From the start of ``command`` at a terminal to its prompt, or to its end where it asks for nothing."""
    master, slave = pty.openpty()
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environ) as run:
        os.close(slave)
        shown = b""
        try:
            while not PROMPT.search(shown):
                shown += os.read(master, 4096)
            taken = time.perf_counter() - began
            os.write(master, b"\x04")
        except OSError:  # it has ended
            taken = time.perf_counter() - began
        if run.wait():
            raise SystemExit(shown.decode(errors="replace"))
    os.close(master)
    return taken


def main(recipe: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        environ = {**os.environ, "FORGE_HOME": os.environ.get("FORGE_HOME", f"{place}/home"), "TERM": "xterm"}
        named = ["--repository", f"{place}/models"]
        run = [FORGE, "run", recipe, *named, "--http-port", "18800", "--grpc-port", "18801", "--metrics-port", "18802"]
        subprocess.run([FORGE, "build", recipe, *named], env=environ, check=True, capture_output=True)
        try:
            first = seconds(run, environ)
            taken = [(seconds(run, environ), seconds(IMPORTS, environ)) for _ in range(ROUNDS)]
        finally:
            subprocess.run([FORGE, "stop", *named], env=environ, check=False, capture_output=True)
    again, imports = (statistics.median(each) for each in zip(*taken, strict=True))
    print(f"{'imports of the same':44} {imports:6.2f} s")
    print(f"{'forge run again, to the prompt':44} {again:6.2f} s")
    print(f"{'forge run, built already: Triton starts':44} {first:6.2f} s")
    print(f"\nagain / imports: {again / imports:.1f}; {MOST / again:.0f} times within {MOST:g} s")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["smollm2-135m-instruct"]))
