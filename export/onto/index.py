"""Fingerprints of lines, and the index that finds a line by one.

A fingerprint is a 64-bit number made of 32 of a line's numbers, spread over it:

    key = mix(sum of bits(x_i as float32) · m_i),   i = 32 places,   m_i fixed odd 64-bit numbers,   mod 2^64

Equal lines have equal keys. Whoever finds a line by its key compares all of its numbers afterwards, so a key
that two different lines share costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.export.onto.numbers import bit_floats

SAMPLES = 32

_random = np.random.default_rng(20261127)
FACTORS = _random.integers(0, 1 << 63, SAMPLES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

Keys = NDArray[np.uint64]


def places(length: int) -> NDArray[np.int64]:
    """Which numbers of a line are looked at."""
    if length <= SAMPLES:
        return np.arange(length)
    return np.linspace(0, length - 1, SAMPLES).astype(np.int64)


def fingerprints(samples: NDArray[Any], type_: Type) -> Keys:
    """Keys of lines, from their numbers at `places`: (lines, at most SAMPLES), as bits of a plain type."""
    if type_ == Type.F16:
        samples = bit_floats(np.ascontiguousarray(samples), type_).view(np.uint32)
    sums: Keys = samples.astype(np.uint64) @ FACTORS[: samples.shape[1]]
    if type_ == Type.BF16:  # the upper half of a float32's bits
        sums <<= np.uint64(16)
    return mixed(sums)


def mixed(keys: Keys) -> Keys:
    """Spread what differs over all bits (the last steps of MurmurHash3)."""
    keys = keys ^ (keys >> np.uint64(33))
    keys = keys * np.uint64(0xFF51AFD7ED558CCD)
    return keys ^ (keys >> np.uint64(33))


@dataclass(frozen=True, slots=True)
class Index:
    """Lines by key, 12 bytes a line.

    Attributes:
        keys: in order.
        numbers: the line of each key.
        repeated: lines whose key is another one's too, in order; hardly any.
    """

    keys: Keys
    numbers: NDArray[np.uint32]
    repeated: NDArray[np.uint32]

    @classmethod
    def of(cls, parts: Iterable[tuple[Keys, int]]) -> Index:
        """An index of strips, each given as the keys of its lines and the number of its first."""
        listed = list(parts)
        if not listed:
            return cls(np.zeros(0, np.uint64), *np.zeros((2, 0), np.uint32))
        keys = np.concatenate([keys for keys, _ in listed])
        numbers = np.concatenate(
            [np.arange(first, first + len(keys), dtype=np.uint32) for keys, first in listed]
        )
        order = np.argsort(keys, kind="stable")  # equal keys stay in the order of their lines
        keys, numbers = keys[order], numbers[order]
        again = np.flatnonzero(keys[1:] == keys[:-1])
        return cls(keys, numbers, np.unique(numbers[np.concatenate([again, again + 1])]))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.keys.nbytes + self.numbers.nbytes + self.repeated.nbytes

    def alone(self, start: int, stop: int) -> bool:
        """Whether no line of [start, stop) has another line's key."""
        low, high = np.searchsorted(self.repeated, (start, stop))
        return bool(low == high)

    def find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each key's lines stand in `numbers`: [low, high) for each."""
        low = np.searchsorted(self.keys, keys)
        high = low.copy()
        padded = np.append(self.keys, self.keys[-1:] ^ np.uint64(1))  # behind the last there is another key
        here = np.flatnonzero(padded[np.minimum(low, len(self.keys))] == keys)
        high[here] += 1
        again = here[padded[low[here] + 1] == keys[here]]
        high[again] = np.searchsorted(self.keys, keys[again], side="right")
        return low, high
