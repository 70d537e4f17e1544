"""Some of the fields of `nfllm.Captured`, where a model does not have all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nfllm.model import intermediates as names
from nfllm.model.capture import Captured

LOGITS = "logits"

AXES = {
    **{site: " ".join(recorded.axes) for site, recorded in names.SITES.items()},
    names.RESIDUAL: "L+1 B T D",
    # Other models may have values of another width W than their queries and keys.
    names.VALUE: "L B T G W",
    names.HEAD_OUT: "L B T H W",
    LOGITS: "B T V",
}
"""Axes of each site, as in `nfllm.Captured`; a letter has one size in all of them, and S = T."""


class Sites:
    """Some of the fields of `nfllm.Captured`, for one metric; what it lacks is an error.

    Args:
      arrays: by the name of their field.
      metric: the name of the metric, for the error.
      why: what makes the others lack, for the error.
    """

    def __init__(self, arrays: Mapping[str, Any], metric: str, why: str = "") -> None:
        self._fields = tuple(arrays)
        self._arrays = arrays
        self._metric = metric
        self._why = why

    def __getattr__(self, site: str) -> Any:
        if site not in Captured._fields:
            raise AttributeError(site)
        if site not in self._arrays:
            axes = f" [{written_axes(AXES[site])}]" if site in AXES else ""
            raise ValueError(
                f"the metric {self._metric!r} needs the site {site!r}{axes}, "
                f"which the model does not give{self._why}; it gives "
                f"{', '.join(self._fields) or 'none'}"
            )
        return self._arrays[site]


def written_axes(axes: str) -> str:
    """The letters with commas between them."""
    return ", ".join(axes.split())
