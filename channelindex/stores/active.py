"""Remembers the active blocks of a writer in a bounded map, cheap to ask once per channel and batch."""

Key = tuple[str, str]
"""(channel, group)."""


class ActiveBlock:
    """The active block of one (channel, group), as its writer knows it: its size, when it is full, `Directory.upto`.

    Knowing it is good for one epoch only: between two epochs of ours, another owner may have rotated the block.
    """

    __slots__ = ("epoch", "limit", "number", "size", "upto")

    def __init__(self, epoch: int, number: int, size: int, upto: int, limit: int) -> None:
        self.epoch = epoch
        self.number = number
        self.size = size
        self.upto = upto
        self.limit = limit


class ActiveBlocks:
    """At most *limit* blocks by (channel, group), the longest unused ones forgotten first, in two generations.

    What is used moves into the young generation; when that holds half of the limit it becomes the old one, and
    what was old is forgotten. Asking costs one dict lookup, where an ordered map would pay for a move each time.
    """

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self.young: dict[Key, ActiveBlock] = {}
        """The blocks used last, to be looked up before `get` is called: one lookup per channel and batch."""
        self._old: dict[Key, ActiveBlock] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def get(self, key: Key) -> ActiveBlock | None:
        """The active block of *key*, None if it is not remembered."""
        active = self.young.get(key)
        if active is None:
            active = self._old.pop(key, None)
            if active is not None:
                self.put(key, active)
        return active

    def put(self, key: Key, active: ActiveBlock) -> None:
        """Remember *active*, instead of what *key* had."""
        self._old.pop(key, None)
        self.young[key] = active
        if len(self.young) >= self._half:
            self._old, self.young = self.young, {}

    def drop(self, key: Key) -> None:
        """Forget *key*."""
        self.young.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self.young.clear()
        self._old.clear()
