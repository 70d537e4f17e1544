"""Shuffled orders that need no memory: a keyed bijection of `0 .. size - 1`.

An array of the order would take 8 bytes for each window in every process, 80 GB for 10 billion
windows, and would have to be computed for every epoch and at every resume.

A generalized Feistel network permutes `rows * columns` numbers, a rectangle slightly larger than
`size`; an image outside the range is mapped again until it falls inside (Black & Rogaway, "Ciphers
with Arbitrary Finite Domains", CT-RSA 2002, methods 2 and 3). Only integer arithmetic is used, so
the order is the same on every machine and with every version of NumPy.
"""

from __future__ import annotations

import functools
import math

import numpy as np

# With 8 rounds, permutations of 5 numbers clearly differ in frequency; with 12 they do not.
_ROUNDS = 12
_WORD = (1 << 64) - 1
# Constants of SplitMix64.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)


def permute(index: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Images of `index` under the permutation of `range(size)` that `key` selects.

    Args:
      index: integers in `range(size)`, any shape.
      size: length of the permutation, at least 1.
      *key: integers, for example a seed and an epoch; each tuple gives its own permutation.

    Returns:
      int64 array of the shape of `index`.

    Raises:
      ValueError: an index lies outside `range(size)`.
    """
    index = np.asarray(index, np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"indices {index.min()} to {index.max()} leave range({size})")
    rows, columns = _rectangle(size)
    keys = _round_keys(key)
    image = _feistel(index.astype(np.uint64), rows, columns, keys)
    while (outside := image >= size).any():
        image[outside] = _feistel(image[outside], rows, columns, keys)
    return image.astype(np.int64)


@functools.lru_cache
def _rectangle(size: int) -> tuple[int, int]:
    """Rows and columns of the tightest near-square rectangle that holds `size`."""
    root = math.isqrt(size - 1) + 1
    columns = np.arange(root, root + max(1, root // 2))
    rows = -(-size // columns)
    best = np.argmin(rows * columns)
    return int(rows[best]), int(columns[best])


def _feistel(value: np.ndarray, rows: int, columns: int, keys: np.ndarray) -> np.ndarray:
    """Permutes `range(rows * columns)`: each round shifts a coordinate by a hash of the other."""
    moduli = np.array([rows, columns], np.uint64)
    row, column = np.divmod(value, moduli[1])
    for row_key, column_key in zip(keys[::2], keys[1::2], strict=True):
        row = (row + (_mix(column ^ row_key) >> np.uint64(1))) % moduli[0]
        column = (column + (_mix(row ^ column_key) >> np.uint64(1))) % moduli[1]
    return row * moduli[1] + column


def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix(state ^ np.uint64(part & _WORD))
    return _mix(state + np.arange(_ROUNDS, dtype=np.uint64))


def _mix(value: np.ndarray) -> np.ndarray:
    """A hash of 64-bit words: SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    value = value + _GAMMA
    for shift, factor in _MIXERS:
        value ^= value >> shift
        value *= factor
    value ^= value >> _LAST_SHIFT
    return value
