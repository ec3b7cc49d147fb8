"""The twin's decoder by itself, for streaming.py: run by the Python that serves it, since numpy's own speed differs.

Reads a JSON request a line (``prompt``, ``count``, ``end``: the token never to be said) and answers with a JSON list of
seconds: to the first token, and to the last. forge's core/forge (or a server's backends/tensorrtllm) stands on PYTHONPATH.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    loading: Any = importlib.import_module("twin.loading")
    decoder = loading.load(Path(sys.argv[1]))
    for line in sys.stdin:
        wanted = json.loads(line)
        began = time.perf_counter()
        memory = decoder.start()
        logits = decoder.prompt(memory, np.array(wanted["prompt"]))
        first = 0.0
        for place in range(wanted["count"]):
            logits[0, wanted["end"]] = -np.inf
            token = int(logits.argmax())
            first = first or time.perf_counter() - began
            if place + 1 < wanted["count"]:
                logits = decoder.step([memory], [token])
        print(json.dumps([first, time.perf_counter() - began]), flush=True)


if __name__ == "__main__":
    main()
