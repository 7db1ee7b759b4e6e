"""Progress of a long run, and how to stop it."""

import logging
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import rich_click as click
from tqdm import tqdm

from sepo_data.errors import counted
from sepo_data.runs.progress import Progress

from .ending import typed

log = logging.getLogger("sepo")

LOG_EVERY_S = 30


class Stop:
    """Stops a run gracefully: after the first Ctrl-C or SIGTERM it finishes its current unit of work.

    A second Ctrl-C ends the process at once.

    Attributes:
        command: What the user typed, ``annotate`` or ``train``.
        unit: The unit that is finished first.
        stopped_by: The signal received, if any.
    """

    def __init__(self, command: str, unit: str) -> None:
        self.command, self.unit = command, unit
        self.stopped_by: signal.Signals | None = None
        self.handlers: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def listen(self) -> None:
        """Install the handlers; before this there is nothing to finish."""
        if not self.handlers:
            self.handlers = {
                number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)
            }

    def release(self) -> None:
        """Restore the handlers."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether a signal was received."""
        self.listen()
        return self.stopped_by is not None

    def exit(self) -> NoReturn:
        """Print how to resume, and exit like a stopped process: 130 for Ctrl-C, 143 for SIGTERM."""
        stopped_by = self.stopped_by or signal.SIGTERM  # another process of the run may have received it
        arguments = sys.argv[2:] if sys.argv[1:2] == [self.command] else sys.argv[1:]
        click.echo(f"Stopped. Resume with: {typed(self.command, *arguments)}", err=True)
        sys.exit(128 + stopped_by)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = signal.Signals(number)
        click.echo(f"\nFinishing the current {self.unit}; press Ctrl-C again to stop at once.", err=True)


class ProgressBar(Progress):
    """Progress on stderr: a bar on a terminal, otherwise a log line every 30 seconds.

    Attributes:
        stop: Handles requests to stop.
        unit: What is counted, ``row`` or ``step``.
    """

    def __init__(self, stop: Stop, unit: str) -> None:
        self.stop, self.unit = stop, unit
        self.bar: tqdm[NoReturn] | None = None
        self.began = self.logged = time.monotonic()

    def start(self, rows: int, done: int) -> None:
        """Show the bar and install the signal handlers."""
        self.bar = tqdm(
            total=rows,
            initial=done,
            unit=self.unit,
            disable=None,
            smoothing=0,  # average rate: chunks differ, and the estimate should not jump
            bar_format="{l_bar}{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",
        )
        self.initial, self.done, self.rows = done, float(done), rows
        self.began = self.logged = time.monotonic()
        if done:
            log.info("%s of %s done before", f"{done:,}", counted(rows, self.unit))
        self.stop.listen()

    def advance(self, rows: float) -> None:
        """Advance the bar, or log a line if the last one is old."""
        assert self.bar is not None
        self.done += rows
        self.bar.update(rows)
        now = time.monotonic()
        if self.bar.disable and now - self.logged >= LOG_EVERY_S:
            self.logged = now
            rate = (self.done - self.initial) / (now - self.began)
            log.info(
                "%s of %s, %.2f %ss/s, %s left",
                f"{self.done:,.0f}",
                counted(self.rows, self.unit),
                rate,
                self.unit,
                tqdm.format_interval((self.rows - self.done) / rate),
            )

    def finish(self) -> None:
        """Close the bar and restore the signal handlers."""
        if self.bar is not None:
            self.bar.close()
        self.stop.release()
