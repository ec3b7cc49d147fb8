"""Several answers side by side on a terminal, while they come."""

from collections.abc import Callable, Sequence

from rich.columns import Columns as Row
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from forge.cli.text import shown
from forge.client.answer import Piece, Reply


class Columns:
    """One panel for each sequence; ``below`` is said at its end, ``likely`` gives a piece its colour."""

    def __init__(
        self, below: Callable[[Reply], str], likely: Callable[[Piece], float | None], console: Console | None = None
    ) -> None:
        self._below, self._likely = below, likely
        self._live = Live(console=console or Console(), refresh_per_second=12, vertical_overflow="visible")
        self._live.start()

    def show(self, replies: Sequence[Reply]) -> None:
        width = max(20, self._live.console.width // max(len(replies), 1) - 2)
        panels = [Panel(self._text(reply), title=str(index), width=width) for index, reply in enumerate(replies)]
        self._live.update(Row(panels, equal=True))

    def close(self) -> None:
        self._live.stop()

    def _text(self, reply: Reply) -> Text:
        said = [(shown(piece.text), self._style(piece)) for piece in reply.pieces]
        below = self._below(reply)
        return Text.assemble(*said, *([("\n" + below, "dim")] if below else []))

    def _style(self, piece: Piece) -> str:
        likely = self._likely(piece)
        if likely is None:
            return ""
        return f"rgb({round(220 * min(1.0, 2 - 2 * likely))},{round(190 * min(1.0, 2 * likely))},60)"
