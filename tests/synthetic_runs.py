"""Run directories of known content, written as the training loop writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nfllm.config import Config, get_config
from nfllm.rundir import RunRecord, write_record
from nfllm.rundir.metrics import MetricsWriter
from nfllm.rundir.perplexity import perplexity

# What the tests count on, whatever the defaults become.
_BASE = {
    "model.num_layers": 4,
    "model.num_heads": 4,
    "model.embed_dim": 128,
    "model.context_length": 128,
    "model.normalization": "none",
    "model.final_normalization": "layernorm",
    "model.activation": "relu",
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.1,
    "training.steps": 1000,
    "training.batch_size": 16,
    "training.seed": 0,
}
SITES = ("residual", "attention_logits", "attention_out", "mlp_pre", "mlp_out")


def make_config(changes: Mapping[str, Any]) -> Config:
    """The default config with `{"section.key": value}` changed."""
    values = get_config().to_dict()
    for key, value in {**_BASE, **changes}.items():
        section, _, name = key.partition(".")
        assert name in values[section]
        values[section][name] = value
    return Config.from_dict(values)


def make_record(changes: Mapping[str, Any], **fields: Any) -> RunRecord:
    known = {
        "config": make_config(changes),
        "vocab_size": 4096,
        "num_parameters": 1_327_104,
        "data_fingerprint": "9f0c",
        "decayed_parameters": ("blocks.mlp.up.kernel",),
        "undecayed_parameters": ("blocks.mlp.slope",),
        "nfllm_version": "0.1.0",
    }
    return RunRecord(**known | fields)


def write_run(
    run: Path,
    changes: Mapping[str, Any],
    entropy_LH: np.ndarray | None,
    final_loss: float,
    slopes_NL: np.ndarray | None = None,
    nonfinite_from: int | None = None,
    num_probes: int = 21,
    spectra: bool = True,
    saturation: Mapping[str, np.ndarray] | None = None,
    **record: Any,
) -> Path:
    """A finished run of 1,000 steps: losses fall to `final_loss`, entropies to `entropy_LH`.

    From step `nonfinite_from` on, every site from layer 1 on has NaN. `spectra=False` is a run from
    before there were participation ratios.
    """
    config = make_config(changes)
    write_record(run, make_record(changes, **record))
    layers, heads = (
        (config.model.num_layers, config.model.num_heads)
        if entropy_LH is None
        else entropy_LH.shape
    )
    rng = np.random.default_rng(0)
    ceiling = np.mean(np.log(np.arange(1, config.model.context_length + 1)))
    with MetricsWriter(run) as metrics:
        metrics.write("event", 0, event="started", message="")
        for step in range(10, 1001, 10):
            loss = final_loss + (8.3 - final_loss) * np.exp(-step / 150) + rng.normal() * 0.03
            metrics.write(
                "train",
                step,
                loss_nats=loss,
                grad_norm=0.3 + 2 * np.exp(-step / 80),
                learning_rate=1e-3,
                tokens=step * 16 * 127,
                tokens_per_second=9000.0,
            )
        for step in range(250, 1001, 250):
            loss = final_loss + 0.6 * (1 - step / 1000)
            metrics.write("eval", step, eval_loss_nats=loss, eval_perplexity=perplexity(loss))
        for n in range(num_probes if entropy_LH is not None else 0):
            share = n / max(1, num_probes - 1)
            step = round(1000 * share)
            broken = nonfinite_from is not None and step >= nonfinite_from
            count_L = np.where(np.arange(layers) >= 1, 64 if broken else 0, 0)
            fields: dict[str, Any] = {
                "entropy_nats": ceiling + (entropy_LH - ceiling) * share,
                "logit_max_abs": 0.1 + 5 * share * np.ones((layers, heads)),
                "mlp_pre_rms": np.linspace(0.05, 1.5, layers),
                "residual_rms": np.linspace(0.03, 4.0, layers + 1),
                "residual_max_abs": np.linspace(0.1, 8.0, layers + 1),
                "nonfinite": {
                    site: [*count_L, count_L[-1]] if site == "residual" else count_L
                    for site in sorted(SITES)
                },
            }
            if spectra:
                fields["mlp_pre_participation"] = np.geomspace(2, 40, layers) * (1 + share)
                fields["mlp_post_participation"] = np.geomspace(5, 300, layers) * (1 + share)
            if slopes_NL is not None:
                fields["negative_slopes"] = slopes_NL[n]
            for site, shares in (saturation or {}).items():
                fields[f"saturation_{site}"] = shares[n]
            metrics.write("telemetry", step, **fields)
        metrics.write("event", 1000, event="finished", message="")
    return run
