"""The sites that a foreign model may give, and the shape that each must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nfllm.analysis import attention_entropy
from nfllm.analysis.arrays import Arrays, as_array
from nfllm.config import suggest
from nfllm.measure.sites import AXES, LOGITS, written_axes
from nfllm.model import intermediates as names


def check_sites(found: Mapping[str, Arrays], tokens_BT: np.ndarray) -> dict[str, jax.Array]:
    """The sites as arrays of this process.

    Raises:
      ValueError: an unknown site, a shape that does not fit the tokens or the other sites, a row of
        `attention_probs` that is not a distribution, or a token id outside the logits' vocabulary.
    """
    sizes = dict(zip("BTS", (*tokens_BT.shape, tokens_BT.shape[1]), strict=True))
    arrays = {}
    for site, value in found.items():
        if site not in AXES:
            raise ValueError(f"unknown site {site!r}; {suggest(site, AXES)}")
        arrays[site] = as_array(value)
        _check_shape(site, arrays[site].shape, sizes)
    if names.ATTENTION_PROBS in arrays:
        attention_entropy(arrays[names.ATTENTION_PROBS])  # checks every row that has values
    if LOGITS in arrays and (tokens_BT.min() < 0 or tokens_BT.max() >= sizes["V"]):
        raise ValueError(
            f"token ids range from {tokens_BT.min()} to {tokens_BT.max()}, but the model's logits "
            f"have {sizes['V']} entries; is this its tokenizer?"
        )
    return arrays


def _check_shape(site: str, shape: tuple[int, ...], sizes: dict[str, Any]) -> None:
    """Checks a site's shape against `sizes`, and adds the sizes of axes that are new."""
    axes = AXES[site].split()
    if len(shape) != len(axes):
        raise ValueError(
            f"{site} has shape {shape}, but its axes are [{written_axes(AXES[site])}]; "
            "a tuple with one array for each layer counts as their stack"
        )
    for axis, size in zip(axes, shape, strict=True):
        size = size - 1 if axis == "L+1" else size
        known = sizes.setdefault(axis[0], size)
        if size != known:
            raise ValueError(
                f"{site} has shape {shape}, but its axes are [{written_axes(AXES[site])}], and "
                f"by the tokens and the sites before it {axis[0]}={known}, not {size}"
            )
