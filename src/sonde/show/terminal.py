"""The terminal: progress on standard error, tables on standard output, both readable at 100 columns.

progress   a context in which long work shows rate and time left
table      columns of plain values -> a printed table
facts      name and value pairs -> a printed table
say        a line on standard error
log_lines  a handler that writes messages of loggers as `say` does
console    where tables are printed
visible    control characters written out
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sonde.progress import Advance, watching

COLUMNS = 100
"""Width of tables where the output is no terminal, and the most they take in one."""


class _Rate(ProgressColumn):
    """`340 rows/s`."""

    def render(self, task: Task) -> Text:
        since_start = task.completed / task.elapsed if task.elapsed else 0.0
        speed = task.finished_speed or task.speed or since_start
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="cyan")


@contextmanager
def progress() -> Iterator[None]:
    """Show the stages of the work inside on standard error: a moving bar on a terminal, else one line at its end."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=False,
    )

    known: dict[str, TaskID] = {}

    @contextmanager
    def watch(stage: str, total: int | None, unit: str) -> Iterator[Advance]:
        bars.start()  # not before there is something to show: short commands leave standard error empty
        task = known.get(stage)
        if task is None:
            task = known[stage] = bars.add_task(stage, total=total, unit=unit)
        else:  # the next stretch of a long file: the same line goes on
            before = bars.tasks[bars.task_ids.index(task)].completed
            bars.update(task, total=None if total is None else before + total)
        try:
            yield lambda n: bars.advance(task, n)
        finally:  # also where a loop ends early: a bar is full when its stage is over
            bars.update(task, total=bars.tasks[bars.task_ids.index(task)].completed)

    try:
        with watching(watch, lambda sentence: bars.console.print(Text(visible(sentence)), soft_wrap=True)):
            yield
    finally:
        if bars.tasks:
            bars.stop()


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Print rows of plain values; numbers stand to the right."""
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(columns):
        right = bool(rows) and isinstance(rows[0][i], int | float)
        grid.add_column(Text(visible(name)), justify="right" if right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_plain(cell)) for cell in row))
    console().print(grid)


def facts(pairs: Mapping[str, Any]) -> None:
    """Print names and values; a long value takes several lines."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs.items():
        grid.add_row(Text(visible(name)), Text(_plain(value)))
    console().print(grid)


def say(line: str) -> None:
    """One line on standard error, control characters made visible."""
    sys.stderr.write(visible(line) + "\n")
    sys.stderr.flush()


def log_lines() -> logging.Handler:
    """Messages of loggers on standard error, control characters made visible: they hold names from others' files."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    return handler


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def console() -> Console:
    """Standard output, at most `COLUMNS` wide."""
    own = Console()
    return Console(width=min(own.width, COLUMNS) if own.is_terminal else COLUMNS)


def _plain(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.4f}"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return "" if cell is None else visible(str(cell))


def visible(text: str) -> str:
    """A label with terminal escape codes must not drive the terminal."""
    escape: Callable[[str], str] = lambda c: c if c.isprintable() or c == "\n" else repr(c)[1:-1]  # noqa: E731
    return "".join(map(escape, text))
