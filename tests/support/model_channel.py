"""One channel of an abstract index, and the operations of a store on it: for models that visit every state.

Pure: each operation takes a `Channel` and returns the one after it. A block is full with its first entry, so that
every append rotates. A block that `expires` may be gone at any time from then on: the grace is as short as can be.
"""

from collections.abc import Iterable
from typing import NamedTuple

OUTPUT = 100
"""Numbers of the groups that compactors write begin here."""


class Entry(NamedTuple):
    """An entry of the index. `rev` says which branch of the source it is of, `gone` that it is a deletion."""

    epoch: int
    seqno: int
    doc: str
    rev: str
    gone: bool = False


class Block(NamedTuple):
    """A block that is there."""

    group: int
    number: int
    entries: frozenset[Entry]
    expires: bool = False


class Group(NamedTuple):
    """A group's part of the directory. `clock` (epoch, seqno) is that of a compactor's group; readers skip by it."""

    name: int
    number: int
    epoch: int
    first: int
    clock: tuple[int, int] = (0, 0)


class Channel(NamedTuple):
    """The directory and the blocks, both in the order of their names."""

    generation: int = 0
    next_number: int = 0
    floor: int = 0
    groups: tuple[Group, ...] = ()
    blocks: tuple[Block, ...] = ()

    def group(self, name: int) -> Group | None:
        """The group *name*, None where the directory has none."""
        return next((group for group in self.groups if group.name == name), None)

    def block(self, group: int, number: int) -> Block | None:
        """A block, None where it is gone."""
        return next((block for block in self.blocks if (block.group, block.number) == (group, number)), None)

    def named(self, group: Group) -> list[Block | None]:
        """The blocks that *group* names, oldest first; None for each that is gone."""
        return [self.block(group.name, number) for number in range(group.first, group.number + 1)]


class Switch(NamedTuple):
    """What a compactor wants: the groups that it read, which of them go whole, its output and the floor.

    Only without `checks` does it happen whatever the generation, and whatever is left of the output.
    """

    generation: int
    known: tuple[Group, ...]
    removed: frozenset[int]
    output: Group | None
    floor: int
    checks: bool = True


def with_group(channel: Channel, group: Group) -> Channel:
    """Put *group* into the place of the one of its name."""
    others = [each for each in channel.groups if each.name != group.name]
    return channel._replace(groups=tuple(sorted([*others, group])))


def with_block(channel: Channel, block: Block) -> Channel:
    """Put *block* into the place of the one of its name."""
    others = [each for each in channel.blocks if each[:2] != block[:2]]
    return channel._replace(blocks=tuple(sorted([*others, block], key=lambda each: each[:2])))


def append(channel: Channel, group: int, number: int, entry: Entry) -> Channel | None:
    """Append blindly; None where the block is gone."""
    block = channel.block(group, number)
    return with_block(channel, block._replace(entries=block.entries | {entry})) if block else None


def locate(channel: Channel, name: int, entry: Entry) -> tuple[Channel, int] | None:
    """Append to the active block of a group, whichever it is, and record the epoch; None where a newer one is there."""
    group = channel.group(name)
    if group is None:
        number = channel.next_number
        channel = with_block(channel, Block(name, number, frozenset()))
        group = Group(name, number, entry.epoch, number)
    elif group.epoch > entry.epoch:
        return None
    appended = append(channel, name, group.number, entry)
    assert appended, "the directory names what is there: see `unnamed`"
    return with_group(appended, group._replace(epoch=entry.epoch)), group.number


def rotate(channel: Channel, name: int, number: int, epoch: int) -> Channel | None:
    """Begin the next block behind *number*; None where the directory is not as its writer knows it."""
    group = channel.group(name)
    if group is None or (group.number, group.epoch) != (number, epoch):
        return None
    block = Block(name, number + 1, frozenset())
    return with_group(with_block(channel, block), group._replace(number=number + 1))


def switch(channel: Channel, wanted: Switch) -> Channel | None:
    """Let a switch happen; None where the generation is another one, or blocks of the output are gone."""
    output = wanted.output
    is_there = output is None or None not in channel.named(output)
    if wanted.checks and not (channel.generation == wanted.generation and is_there):
        return None
    for known in wanted.known:
        channel = _leave(channel, known, removed=known.name in wanted.removed)
    if output:
        channel = with_group(channel, output)
        for block in filter(None, channel.named(output)):
            channel = with_block(channel, block._replace(expires=False))
    return channel._replace(generation=channel.generation + 1, floor=max(channel.floor, wanted.floor))


def _leave(channel: Channel, known: Group, *, removed: bool) -> Channel:
    """Take the full blocks of a group out of the directory; with *removed*, all of it, if it is as it was read."""
    present = channel.group(known.name)
    if present is None:
        return channel
    last = known.number - 1
    if removed and present == known:
        last = known.number
        channel = channel._replace(groups=tuple(group for group in channel.groups if group != present))
        if known.name < OUTPUT:
            channel = channel._replace(next_number=max(channel.next_number, known.number + 1))
    else:
        channel = with_group(channel, present._replace(first=known.number))
    for number in range(known.first, last + 1):
        block = channel.block(known.name, number)
        if block:
            channel = with_block(channel, block._replace(expires=True))
    return channel


def expired(channel: Channel) -> Channel:
    """The channel when the time of all blocks that expire is over."""
    return channel._replace(blocks=tuple(block for block in channel.blocks if not block.expires))


def unnamed(channel: Channel) -> Iterable[str]:
    """What is named and not there, or there for good and not named."""
    names = {(group.name, number) for group in channel.groups for number in range(group.first, group.number + 1)}
    there = {block[:2] for block in channel.blocks}
    lasting = {block[:2] for block in channel.blocks if not block.expires}
    yield from (f"block {number} of group {group} is named and gone" for group, number in sorted(names - there))
    yield from (f"block {number} of group {group} is a stray" for group, number in sorted(lasting - names))
