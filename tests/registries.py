"""The registries of parts, which are the process's own."""

import contextlib
from collections.abc import Iterator

from nfllm.config.names import ACTIVATION_NAMES, ATTENTION_TRANSFORM_NAMES, NORMALIZATION_NAMES
from nfllm.measure.metrics import METRICS
from nfllm.model import part_checks
from nfllm.model.activations import ACTIVATIONS, STARTS
from nfllm.model.normalizations import NORMALIZATIONS
from nfllm.model.parameters import KINDS
from nfllm.model.softmax import ATTENTION_TRANSFORMS

_NAMES = (ACTIVATION_NAMES, NORMALIZATION_NAMES, ATTENTION_TRANSFORM_NAMES)
_REGISTRIES: list[dict] = [
    *(names._parts for names in _NAMES),
    *(ACTIVATIONS, STARTS, NORMALIZATIONS, ATTENTION_TRANSFORMS, KINDS, METRICS),
]


@contextlib.contextmanager
def restored_registries() -> Iterator[None]:
    """Within it, parts can be registered; after it, they are gone."""
    before = [dict(registry) for registry in _REGISTRIES]
    try:
        yield
    finally:
        for registry, entries in zip(_REGISTRIES, before, strict=True):
            registry.clear()
            registry.update(entries)
        part_checks._waiting.clear()
