"""Shuffled orders that need no memory: a keyed bijection of `0 .. size - 1`.

A Feistel network permutes the smallest power of four that is not below `size`, and an image outside
the range is mapped again until it falls inside ("cycle walking"; Black & Rogaway, "Ciphers with
Arbitrary Finite Domains", CT-RSA 2002). The order is made of integer arithmetic alone, so it is the
same on every machine and with every version of NumPy.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 8
_WORD = (1 << 64) - 1


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
    if index.size and not (index.min() >= 0 and index.max() < size):
        raise ValueError(f"indices {index.min()} to {index.max()} leave range({size})")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _round_keys(key)
    image = _feistel(index.astype(np.uint64), half_bits, keys)
    while (outside := image >= size).any():
        image[outside] = _feistel(image[outside], half_bits, keys)
    return image.astype(np.int64)


def _feistel(value: np.ndarray, half_bits: int, keys: list[int]) -> np.ndarray:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = value >> bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ np.uint64(key)) & mask)
    return (left << bits) | right


def _round_keys(key: tuple[int, ...]) -> list[int]:
    state = np.zeros(1, np.uint64)
    keys = []
    for part in (*key, *range(_ROUNDS)):
        state = _mix(state ^ np.uint64(part & _WORD))
        keys.append(int(state[0]))
    return keys[-_ROUNDS:]


def _mix(value: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), modulo 2^64."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
