"""What people see of a sweep while it runs."""

from __future__ import annotations

import functools
import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from elfs_lib.runs.planning import Outcome, Plan, SharedStage
from elfs_lib.runs.spec import Cell, Sweep, cells


class SweepProgress:
    """A table on a terminal, a line for each thing that ends elsewhere."""

    def __init__(self, sweep: Sweep, todo: Plan, say: Callable[[str], None] | None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False, markup=False)
        self._live = None
        if say is None and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            say = self._console.print
        self.say = say or functools.partial(print, flush=True)
        self._total = Counter(cell.dataset for cell in cells(sweep))
        names = {cell.name: cell.dataset for cell in cells(sweep)}
        waiting = {cell.name for cell in todo.waiting}
        self._failed = Counter(names[name] for name in todo.failed)
        self._done = Counter(names[n] for n in todo.rows if n not in waiting | todo.failed.keys())
        self._running: dict[str, tuple[SharedStage | Cell, float]] = {}
        self._ends: deque[float] = deque(maxlen=20)

    def __enter__(self) -> SweepProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self.refresh()
            self._live.stop()

    def started(self, item: SharedStage | Cell) -> None:
        self._running[item.name] = (item, time.monotonic())
        if isinstance(item, Cell) and not self._ends:
            self._ends.append(time.monotonic())  # the estimate counts from the first training
        self.refresh()

    def finished(self, item: SharedStage | Cell, outcome: Outcome) -> None:
        self._running.pop(item.name, None)
        if isinstance(item, Cell):
            self._ends.append(time.monotonic())
            (self._done if outcome.kind == "done" else self._failed)[item.dataset] += 1
        text = f"{outcome.kind} {item.title}"
        if outcome.row:
            text += f": {outcome.row['accuracy']:.2f}%"
        if outcome.message:
            text += f": {outcome.message}"
        self.say(f"{self._count()} {text} ({outcome.seconds:.0f} s){self._left()}")
        self.refresh()

    def refresh(self) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)

    def _count(self) -> str:
        return f"[{self._done.total() + self._failed.total()}/{self._total.total()}]"

    def _left(self) -> str:
        waiting = self._total.total() - self._done.total() - self._failed.total()
        if len(self._ends) < 3 or not waiting:
            return ""
        pace = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return f", about {timedelta(seconds=round(pace * waiting))} left"

    def table(self) -> Any:
        from rich.table import Table

        now = time.monotonic()
        running = [f"{item.title} ({now - start:.0f} s)" for item, start in self._running.values()]
        caption = "\n".join(["running: " + "; ".join(running)] if running else [])
        table = Table("dataset", caption=caption + self._left(), caption_justify="left")
        for column in ("done", "running", "failed", "waiting", "all"):
            table.add_column(column, justify="right")
        busy = Counter(i.dataset for i, _ in self._running.values() if isinstance(i, Cell))
        for dataset, total in self._total.items():
            done, failed = self._done[dataset], self._failed[dataset]
            numbers = (done, busy[dataset], failed, total - done - failed - busy[dataset], total)
            table.add_row(dataset, *map(str, numbers))
        return table
