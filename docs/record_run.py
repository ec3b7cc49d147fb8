"""Draws docs/forge-run.svg from a real `forge run`: what stood on its terminal in the end, from the first build to the answer.

pip install pyte; python docs/record_run.py     builds in an empty home and an empty folder, serves, asks, and stops again

pyte is the terminal: it knows where the progress bars were written and taken away. rich draws its screen.
"""

import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from contextlib import suppress
from fcntl import ioctl
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

HERE = Path(__file__).parent
RECIPE = "smollm2-135m-instruct"
QUESTIONS = ("What is the capital of France? Answer in one sentence.", "And of Italy?", "/bye")
COLUMNS, LINES = 100, 200
COLOURS = {"brown": "yellow"}
"""pyte's word for a colour -> rich's."""
PATIENCE = 900.0
"""Seconds for a build on a slow machine and network."""
FORGE = str(Path(sys.executable).with_name("forge"))


class Session:
    """A program on a terminal of its own."""

    def __init__(self, words: list[str], environ: dict[str, str], folder: str) -> None:
        self.fd, child = pty.openpty()
        ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self._program = subprocess.Popen(
            words, stdin=child, stdout=child, stderr=child, env=environ, cwd=folder, start_new_session=True
        )
        os.close(child)

    def read(self) -> bool:
        """Take in what comes within a moment; false when the program has closed its terminal."""
        if select.select([self.fd], [], [], 0.2)[0]:
            with suppress(OSError):
                if came := os.read(self.fd, 65536):
                    self._stream.feed(came)
                    return True
            return False
        return True

    def until_prompt(self) -> None:
        """Until the prompt stands alone on the line of the cursor."""
        end = time.monotonic() + PATIENCE
        while self.screen.display[self.screen.cursor.y].rstrip() != ">":
            if not self.read() or time.monotonic() > end:
                raise SystemExit("\n".join(line.rstrip() for line in self.screen.display if line.strip()))

    def type(self, line: str) -> None:
        os.write(self.fd, f"{line}\n".encode())
        time.sleep(0.5)
        self.read()

    def finish(self) -> None:
        while self.read() and self._program.poll() is None:
            pass
        self._program.send_signal(signal.SIGTERM)
        self._program.wait()


def drawn(screen: pyte.Screen) -> Text:
    """The lines of a terminal with their colours, less the empty ones at its end."""
    last = max(number for number, line in enumerate(screen.display) if line.strip())
    text = Text()
    for number in range(last + 1):
        row = screen.buffer[number]
        cells = [row[column] for column in range(COLUMNS)]
        width = len("".join(cell.data for cell in cells).rstrip())
        for (colour, bold), alike in groupby(cells[:width], lambda cell: (cell.fg, cell.bold)):
            known = None if colour == "default" else COLOURS.get(colour, colour)
            text.append("".join(cell.data for cell in alike), Style(color=known, bold=bold))
        text.append("\n")
    return text


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        environ = {**os.environ, "FORGE_HOME": f"{scratch}/home", "TERM": "xterm-256color"}
        folder = f"{scratch}/here"
        Path(folder).mkdir()
        session = Session([FORGE, "run", RECIPE], environ, folder)
        try:
            for question in QUESTIONS:
                session.until_prompt()
                session.type(question)
            session.finish()
        finally:
            subprocess.run([FORGE, "stop", "--all", "--quiet"], env=environ, cwd=folder, check=False, capture_output=True)
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - nobody reads it
    console.print(Text(f"$ forge run {RECIPE}", "bold"))
    console.print(drawn(session.screen), end="")
    console.save_svg(str(HERE / "forge-run.svg"), title="forge run", clear=False)


if __name__ == "__main__":
    main()
