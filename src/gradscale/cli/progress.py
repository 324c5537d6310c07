"""A bar that shows how far something is, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Tell = Callable[[int, int, str], None]
"""Given how much is done, of how much, and what comes next."""


@contextmanager
def progress(screen: Console, first: str) -> Generator[Tell]:
    """A bar on `screen`, if that is a terminal, until the block ends.

    Args:
        screen: where to draw.
        first: what is done before the bar is told of anything.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    # In a file each redrawn bar would be another line.
    quiet = not screen.is_terminal
    with Progress(
        *columns, TimeElapsedColumn(), console=screen, transient=True, disable=quiet
    ) as bar:
        task = bar.add_task(first, total=None)

        def tell(done: int, total: int, what: str) -> None:
            # A bar that only knows 0 of 1 says less than one that moves.
            bar.update(task, completed=done, total=total if total > 1 else None, description=what)

        yield tell
