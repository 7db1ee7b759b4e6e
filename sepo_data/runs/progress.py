"""Progress of a run, for callers that show it."""


class Progress:
    """Receives the progress of a run; this one ignores it."""

    def start(self, rows: int, done: int) -> None:
        """A run over ``rows`` rows, or training steps, begins; ``done`` of them were finished earlier."""

    def advance(self, rows: float) -> None:
        """So many rows or steps, or fractions of one, were finished."""

    def finish(self) -> None:
        """The main part is over; merging, saving and pushing may follow."""


NO_PROGRESS = Progress()
