"""``python -m forge.api.vigil HOME MARKER``: looks after the models of one server until that ends (see
``forge.serve.recovery``).
"""

import os
import signal
import sys
import time
from pathlib import Path

from forge.api.wiring import Wiring
from forge.errors import ForgeError
from forge.serve.launch import launch
from forge.serve.recovery import LOOK, Watch
from forge.store.store import Store


def main(home: Path, marker: str) -> None:
    """Return when no server carries ``marker`` any more."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever ends the server ends this too, and a traceback tells nobody anything
    server, store = Wiring(home, os.environ, say).server, Store(home / "store", clock=time.time)
    watch = Watch(
        server, lambda held, running: launch(held, store, running.ports, on=running.base), time.monotonic, time.time, say
    )
    while True:
        try:
            running = server.current(marker)
            if running is None:
                return
            watch.look(running)
        except (ForgeError, OSError) as error:  # a container engine that is away, a full disk: it may be better next time
            say(str(error))
        time.sleep(LOOK)


def say(text: str) -> None:
    """A line of the log, with the time."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
