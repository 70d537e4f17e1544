r"""Does the entropic overload come when norms are taken out of a model that was trained with them?

    python -m nfllm.experiment configs/remove_norms.py --scale minute --out experiments/removal

    scale   model               data              tokens a run  runs  time
    minute  2 layers, width 32  standard library  15 k          12    2 minutes on 2 cores
    cpu     6 layers, width 64  standard library  4.1 M         12    33 minutes on 2 cores

Every variant has three seeds. `layernorm` is the control: the same steps and schedule, with all its
norms. `removed` is the same model until the middle of the run; then its norms go, one after the
other (2507.02559), and the rest of the run is without any. `norm_free` models never had one.

To remove the norms of a model that is trained already, or imported, start from it instead:

    python train.py --config.training.init_from=RUN --config.model.normalization=frozen_layernorm \
        --config.model.final_normalization=frozen_layernorm --config.removal.start=100
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ml_collections import ConfigDict

from configs.default import get_config as default_config
from nfllm.experiment import Experiment, Group, Variant
from nfllm.papers.removal import removal_sections

SCALES = ("minute", "cpu")
SEEDS = (0, 1, 2)


def get_experiment(scale: str) -> Experiment:
    """The grid at one of `SCALES`."""
    return {"minute": _minute, "cpu": _cpu}[scale]()


def _minute() -> Experiment:
    base = default_config()
    base.model.num_layers = 2
    base.model.embed_dim = 32
    base.model.context_length = 64
    base.data.tokenizer = "bytes"
    base.optimizer.learning_rate = 3e-3
    base.training.steps = 30
    base.training.log_every = 2
    base.evaluation.every = 10
    base.evaluation.max_windows = 64
    base.telemetry.every = 5
    note = "Proves the path in two minutes on 2 cores; its numbers mean nothing."
    groups = {"main": _group(base, start=12, gap=1)}
    return Experiment(note, groups, sections=partial(removal_sections, conclusive=False))


def _cpu() -> Experiment:
    base = default_config()
    base.training.steps = 4000
    base.evaluation.every = 500
    base.checkpoint.keep = 1
    base.telemetry.every = 100
    note = "The default size on the standard library's source: about half an hour on 2 cores."
    groups = {"main": _group(base, start=2000, gap=20)}
    return Experiment(note, groups, sections=removal_sections)


def _group(base: ConfigDict, start: int, gap: int) -> Group:
    """The four variants, the first with everything that the others take away."""
    removed: dict[str, Any] = {
        **_model("frozen_layernorm", "gelu"),
        "removal.start": start,
        "removal.gap": gap,
        "removal.scale_weight": 0.1,
    }
    variants = {
        "layernorm_gelu": Variant(_model("layernorm", "gelu"), SEEDS),
        "removed_gelu": Variant(removed, SEEDS),
        "norm_free_gelu": Variant(_model("none", "gelu"), SEEDS),
        "norm_free_relu": Variant(_model("none", "relu"), SEEDS),
    }
    return Group("Norms kept, removed on the way, and never there", base, variants)


def _model(normalization: str, activation: str) -> dict[str, Any]:
    return {
        "model.normalization": normalization,
        "model.final_normalization": normalization,
        "model.activation": activation,
    }
