"""Changes bytes as faults and malice do."""

import random
from collections.abc import Sequence

_EDGES = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    23,
    24,
    25,
    31,
    32,
    127,
    128,
    250,
    255,
    256,
    65535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)


def mutated(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of *seeds* with one to four changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(_CHANGES)(chance, data, seeds)
    return bytes(data)


def _flip_bit(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _flip_bit_of_header(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[chance.randrange(min(24, len(data)))] ^= 1 << chance.randrange(8)


def _set_number(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """Put an odd number of one to eight bytes somewhere, mostly where lengths are."""
    size = chance.choice((1, 2, 4, 8))
    at = chance.choice((2, 4, 5, 6, 8, 12, 24, chance.randrange(len(data) + 1)))
    data[at : at + size] = (chance.choice(_EDGES) & ((1 << 8 * size) - 1)).to_bytes(size, "big")


def _cut(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    del data[chance.randrange(len(data) + 1) :]


def _cut_out(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    start = chance.randrange(len(data) + 1)
    del data[start : start + chance.randrange(1, 16)]


def _insert(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = chance.randbytes(chance.randrange(1, 16))


def _repeat(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    start = chance.randrange(len(data) + 1)
    piece = data[start : start + chance.randrange(1, 64)]
    data[start:start] = piece * chance.choice((1, 2, 20))


def _splice(chance: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = chance.choice(seeds)
    data[chance.randrange(len(data) + 1) :] = other[chance.randrange(len(other) + 1) :]


_CHANGES = (_flip_bit, _flip_bit_of_header, _set_number, _cut, _cut_out, _insert, _repeat, _splice)
