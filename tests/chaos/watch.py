"""A thread that watches during a run."""

import threading
from abc import ABC, abstractmethod


class Watch(threading.Thread, ABC):
    """A thread that watches until it is asked to stop, and keeps the error that ended it."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.stop_asked = threading.Event()
        self.problem: Exception | None = None

    def run(self) -> None:
        """Watch."""
        try:
            self.watch()
        except Exception as error:  # whoever finishes the recorder must see it
            self.problem = error

    @abstractmethod
    def watch(self) -> None:
        """Watch until `stop_asked`."""
