"""What a long run shows, and how it is asked to stop."""

import logging
import signal
import sys
import time
from types import FrameType
from typing import Any, NoReturn

import rich_click as click
from tqdm import tqdm

from sepo_data.errors import counted
from sepo_data.runs.progress import Progress

from .ending import typed

log = logging.getLogger("sepo")

LOG_EVERY_S = 30


class Stop:
    """How a run is asked to stop: the first Ctrl-C or SIGTERM lets it finish what it has in hand.

    A second Ctrl-C ends the process at once.

    Attributes:
        command: What the user typed, ``annotate`` or ``train``.
        unit: What is finished first.
        stopped_by: The signal that came, if one did.
    """

    def __init__(self, command: str, unit: str) -> None:
        self.command, self.unit = command, unit
        self.stopped_by: signal.Signals | None = None
        self.handlers: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Take over the signals; before this there is nothing to finish."""
        if not self.handlers:
            self.handlers = {
                number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)
            }

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether a signal asked for the end."""
        self.listen()
        return self.stopped_by is not None

    def exit(self) -> NoReturn:
        """Say how to go on, and exit as a stopped process does: 130 for Ctrl-C, 143 for SIGTERM."""
        stopped_by = self.stopped_by or signal.SIGTERM  # another process of the run may have been told
        arguments = sys.argv[2:] if sys.argv[1:2] == [self.command] else sys.argv[1:]
        click.echo(f"Stopped. Resume with: {typed(self.command, *arguments)}", err=True)
        sys.exit(128 + stopped_by)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = signal.Signals(number)
        click.echo(f"\nFinishing the {self.unit} in hand; Ctrl-C again stops at once.", err=True)


class ProgressBar(Progress):
    """Progress on stderr: a bar on a terminal, else one line of log every 30 seconds.

    Attributes:
        stop: How the run is asked to stop.
        unit: What is counted, ``row`` or ``step``.
    """

    def __init__(self, stop: Stop, unit: str) -> None:
        self.stop, self.unit = stop, unit
        self.bar: tqdm[Any] | None = None
        self.began = self.logged = time.monotonic()

    def start(self, rows: int, done: int) -> None:
        """Show the bar, and take over the signals."""
        self.bar = tqdm(
            total=rows,
            initial=done,
            unit=self.unit,
            disable=None,
            smoothing=0,  # the average rate: chunks differ, and the remaining time should not jump
            bar_format="{l_bar}{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",
        )
        self.initial, self.done, self.rows = done, float(done), rows
        self.began = self.logged = time.monotonic()
        if done:
            log.info("%s of %s done before", f"{done:,}", counted(rows, self.unit))
        self.stop.listen()

    def advance(self, rows: float) -> None:
        """Move the bar, or log a line if the last one is old."""
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
        """Leave the bar as it is, and give the signals back."""
        if self.bar is not None:
            self.bar.close()
        self.stop.release()


def quiet_libraries() -> None:
    """Keep deprecation notes of other libraries off the screen, and their bars out of log files."""
    import warnings

    import datasets
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()
