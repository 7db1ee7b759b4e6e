"""How far a run is, for whoever wants to show it."""


class Progress:
    """Who wants to know how far a run is; this one does not."""

    def start(self, rows: int, done: int) -> None:
        """A run over ``rows`` rows, or training steps, begins, ``done`` of them finished earlier."""

    def advance(self, rows: float) -> None:
        """The work of so many rows or steps, or a part of one, was done."""

    def finish(self) -> None:
        """The long part is over; merging, saving and pushing may follow."""


NO_PROGRESS = Progress()
