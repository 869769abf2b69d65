"""The console of what is drawn instead of printed in lines."""

from rich.console import Console

from workers.cli.output import ReaderGone


class Screen(Console):
    """A console whose reader may leave: the command then ends as one that prints lines does."""

    def on_broken_pipe(self) -> None:
        """End the command without a complaint; of itself, rich would exit with 1."""
        raise ReaderGone
