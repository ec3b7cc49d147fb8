"""A build as it goes on, for a person at a terminal. Imports rich, so it is imported when there is one."""

import re

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from forge.cli.progress import sentence
from forge.cli.text import shown
from forge.events import Event

_TRITON = re.compile(r'^[IWEF]\d{4} [\d:.]+ \d+ \S+\] "?')
"""What Triton puts before each line of its log: level, time, process, place in its source."""


class _Measured(ProgressColumn):
    """A column for steps whose size is known; empty for the others, which have no part to show."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return self._column.render(task) if task.total else Text("")


class Bars:
    """A listener with one line for the step under way: how far it is where that is known, and its last log line.

    ``close`` takes the line away and gives the cursor back, however the work ended.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        # What a step logs is a stranger's text: brackets in it are no markup.
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            _Measured(BarColumn(bar_width=24)),
            _Measured(DownloadColumn()),
            TimeElapsedColumn(),
            TextColumn("{task.fields[line]}", style="dim", markup=False, table_column=rest),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        task = self._tasks.get(event.step)
        if event.kind == "start":
            self._progress.start()
            self._tasks[event.step] = self._progress.add_task(shown(event.step), total=event.total or None, line="")
        elif event.kind == "progress" and task is not None:
            self._progress.update(task, completed=event.done, total=event.total or None)
        elif event.kind == "log" and task is not None:
            self._progress.update(task, line=shown(_TRITON.sub("", event.text)))
        elif text := sentence(event):
            if event.kind in ("made", "held", "failed", "taken", "sent") and task is not None:
                self._progress.remove_task(self._tasks.pop(event.step))
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
            if not self._tasks:
                self._progress.stop()

    def close(self) -> None:
        self._tasks.clear()
        self._progress.stop()
