"""The paper's comparison as a grid: its six models, its leaky and learned slopes, and controls.

    python -m nfllm.experiment configs/paper.py --scale minute --out experiments/minute

    scale     model                  data               tokens a run  runs  time
    minute    2 layers, width 32     standard library   15 k             6  a minute on 2 cores
    cpu       8 layers, width 64     standard library   4.1 M           31  2.5 h on 2 cores
    cpu_long  8 layers, width 64     installed packages 16.4 M          66  8 h on 2 cores
    gpu       12 layers, width 768   installed packages 16.4 M          28  see below
    paper     GPT-2 and Pythia-70M   CodeParrot         2.1 B           25  days of one GPU

All runs of a group share data, order, schedule and the rule for the initial weights; the table of
the group lists the differences. The rule was fixed before any result was seen: block matrices start
at std 0.02 sqrt(768 / width), which is the paper's 0.02 at its width. The group std_0.02 starts at
0.02 instead, to show how much depends on the rule; at the paper's width the two agree, and there is
no such group. The group cause has the controls of `configs/causes.py`.

cpu_long and gpu have the paper's number of steps, 32,000, and so its warmup of 1,600, on the Python
source of the interpreter's own site-packages, or of `--config.data.sources=PATHS`; of fewer than
16 M tokens some are read more than once. A run of cpu_long takes 15 minutes of one core, and two
train at a time.

gpu is cpu_long at GPT-2's depth and width, with a tenth of the learning rate: in the warmup toward
1e-3 four of four norm-free runs diverged before step 900, and toward 3e-4 GELU did before step
2,000. A step alone takes 2.8 ms on an H200, so the 28 runs are 42 minutes of steps; compiling,
probes and evaluations come on top, an hour or two in all (extrapolated from four runs, which shared
the device). With `--config.training.compilation_cache=DIR` the seeds of a variant share compiled
programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.default import get_config as default_config
from configs.gpt2_codeparrot import get_config as gpt2_config
from configs.pythia70m_codeparrot import get_config as pythia_config
from nfllm.config.extensions import import_file
from nfllm.experiment import Experiment, Group, Variant
from nfllm.papers.published import REFERENCE
from nfllm.papers.sections import paper_sections
from nfllm.papers.variants import VARIANTS

SCALES = ("minute", "cpu", "cpu_long", "gpu", "paper")

FOUR = ("sm+g", "sm+r", "sm+ln+g", "sm+ln+r")
SIX = (*FOUR, "sm+ln", "sm")

_FREE = {"model.normalization": "none"}
_LARGE = {**_FREE, "model.embedding_scale": "learned"}  # from sqrt(embed_dim)

CAUSES: dict[str, dict[str, Any]] = {
    "gelu": {**_FREE, "model.activation": "gelu"},
    "relu": {**_FREE, "model.activation": "relu"},
    "gelu_narrow": {**_FREE, "model.activation": "gelu_narrow"},
    "relu_zone": {**_FREE, "model.activation": "relu_zone"},
    "gelu_embedding": {**_LARGE, "model.activation": "gelu"},
    "relu_embedding": {**_LARGE, "model.activation": "relu"},
    "ln_gelu_embedding": {
        **_LARGE,
        "model.normalization": "layernorm",
        "model.activation": "gelu",
    },
}
"""Variants of the group cause; `configs/causes.py` registers two of their activations.

The last was added when the results of the others were known.
"""


def get_experiment(scale: str) -> Experiment:
    """The grid at one of `SCALES`."""
    makers = {"minute": _minute, "cpu": _cpu, "cpu_long": _cpu_long, "gpu": _gpu, "paper": _paper}
    return makers[scale]()


def paper_experiment(
    note: str, groups: Mapping[str, Group], *, conclusive: bool = True
) -> Experiment:
    """An experiment whose page judges the claims of the paper; see `paper_sections`."""
    return Experiment(
        note,
        groups,
        sections=partial(paper_sections, conclusive=conclusive),
        reference=REFERENCE,
        linear_replacement=True,
    )


def _minute() -> Experiment:
    base = minute_base()
    base.optimizer.learning_rate = 3e-3
    note = "Proves the path in about a minute on 2 cores; its numbers mean nothing."
    groups = {"main": Group("The six models", base, _variants(SIX))}
    return paper_experiment(note, groups, conclusive=False)


def _cpu() -> Experiment:
    base = small_base(num_layers=8, embed_dim=64, steps=4000, batch_size=8)
    return paper_experiment(
        "Small models on the standard library's source: 2.5 hours on 2 cores.",
        _groups(base, main_seeds=(0, 1, 2), cause_seeds=(0,)),
    )


def _cpu_long() -> Experiment:
    return paper_experiment(
        "The paper's 32,000 steps with small models on the source of installed Python packages: "
        "8 hours on 2 cores.",
        _groups(
            _long_base(num_layers=8, embed_dim=64),
            main_seeds=(0, 1, 2, 3, 4),
            control_seeds=(0, 1),
            linear_seeds=5,
            cause_seeds=(0, 1, 2),
        ),
    )


def _gpu() -> Experiment:
    base = _long_base(num_layers=12, embed_dim=768)
    base.model.num_heads = 12
    base.optimizer.learning_rate = 1e-4  # at the paper's 1e-3 models without norms diverge
    base.checkpoint.every = 8000
    return paper_experiment(
        "The paper's 32,000 steps with models of GPT-2's depth and width on the source of "
        "installed Python packages, for one GPU.",
        _groups(base, main_seeds=(0, 1), cause_seeds=(0, 1)),
    )


def _paper() -> Experiment:
    seeds = (1337,)
    longer = pythia_config()
    longer.model.context_length = 256
    longer.training.steps = 16_300  # an epoch has half as many windows
    return paper_experiment(
        "The released recipe on CodeParrot: 2.1 B tokens a run, one seed, float16.",
        {
            "main": Group(
                "GPT-2, 128 tokens",
                gpt2_config(),
                {
                    **_variants(SIX, seeds),
                    "sm_default_dtype": _variant("sm", seeds, {"training.dtype": "auto"}),
                    **_leaky(seeds),
                    **_learned(seeds),
                },
            ),
            "pythia": Group("Pythia-70M, 128 tokens", pythia_config(), _variants(SIX, seeds)),
            "pythia_256": Group("Pythia-70M, 256 tokens", longer, _variants(SIX, seeds)),
        },
    )


def minute_base() -> ConfigDict:
    """The config of the smallest scale, which only proves that a grid runs."""
    base = small_base(num_layers=2, embed_dim=32, steps=30, batch_size=8)
    base.model.context_length = 64
    base.data.tokenizer = "bytes"
    base.evaluation.max_windows = 64
    base.telemetry.every = 8
    base.training.log_every = 4
    return base


def small_base(num_layers: int, embed_dim: int, steps: int, batch_size: int) -> ConfigDict:
    """The paper's architecture and schedule with the given sizes, in the device's default dtype."""
    base = default_config()
    base.model.num_layers = num_layers
    base.model.embed_dim = embed_dim
    base.model.attention_bias = "qk"
    optimizer = base.optimizer
    optimizer.variant = "hf_adamw"
    optimizer.beta2 = 0.999
    optimizer.schedule = "polynomial"
    optimizer.final_learning_rate = 1e-7
    optimizer.warmup_from_zero = True
    base.training.steps = steps
    base.training.batch_size = batch_size
    base.evaluation.every = steps // 5
    base.checkpoint.every = steps // 5
    base.checkpoint.keep = 1
    return base


def _long_base(num_layers: int, embed_dim: int) -> ConfigDict:
    """The paper's number of steps, in small batches of text that every machine has."""
    base = small_base(num_layers, embed_dim, steps=32_000, batch_size=4)
    base.data.dataset = "python_source"
    base.data.sources = "{site-packages}"
    base.evaluation.every = 2000
    base.evaluation.max_windows = 2048
    base.telemetry.every = 500
    base.checkpoint.every = 2000
    return base


def _groups(
    base: ConfigDict,
    main_seeds: tuple[int, ...],
    control_seeds: tuple[int, ...] = (0,),
    linear_seeds: int = 1,
    cause_seeds: tuple[int, ...] = (),
) -> dict[str, Group]:
    """The main comparison with `main_seeds`, and its controls with `control_seeds`.

    The linear MLP has the first `linear_seeds` of the main seeds, for comparisons seed by seed. The
    group `cause` has `cause_seeds`.
    """
    groups = {
        "main": Group(
            "Six models, leaky and learned slopes, and linear MLPs",
            base,
            {
                **_variants(FOUR, main_seeds),
                **_variants(("sm+ln", "sm"), control_seeds),
                "sm_float16": _variant("sm", control_seeds, {"training.dtype": "float16"}),
                "half_linear": Variant(
                    {"model.normalization": "none", "model.activation": "half_identity"},
                    main_seeds[:linear_seeds],
                ),
                **_leaky(control_seeds),
                **_learned(control_seeds),
            },
        ),
    }
    if cause_seeds:
        import_file(str(Path(__file__).with_name("causes.py")))
        causes = {name: Variant(changes, cause_seeds) for name, changes in CAUSES.items()}
        groups["cause"] = Group("Is it the linear zone of GELU?", base, causes)
    if base.model.embed_dim != 768:  # at 768 both rules give 0.02
        literal = base.copy_and_resolve_references()
        literal.model.init_std_scaling = "none"
        variants = _variants(FOUR, control_seeds)
        groups["std_0.02"] = Group("All matrices at std 0.02", literal, variants)
    return groups


def _variant(
    name: str, seeds: tuple[int, ...] = (0,), changes: Mapping[str, Any] | None = None
) -> Variant:
    model = {f"model.{key}": value for key, value in VARIANTS[name].items()}
    return Variant({**model, **(changes or {})}, seeds)


def _variants(names: tuple[str, ...], seeds: tuple[int, ...] = (0,)) -> dict[str, Variant]:
    return {name: _variant(name, seeds) for name in names}


def _leaky(seeds: tuple[int, ...] = (0,)) -> dict[str, Variant]:
    return {
        f"leaky_{slope:g}": _variant("leaky", seeds, {"model.negative_slope": slope})
        for slope in (0.1, 0.01)
    }


def _learned(seeds: tuple[int, ...] = (0,)) -> dict[str, Variant]:
    """One slope per layer, or one for the whole model, with and without weight decay of slopes."""
    variants = {}
    for sharing in ("layer", "model"):
        for decay in (True, False):
            name = f"learned_{sharing}{'_decayed' if decay else ''}"
            changes = {"model.slope_sharing": sharing, "optimizer.decay_slopes": decay}
            variants[name] = _variant("learnable_layer", seeds, changes)
    return variants
