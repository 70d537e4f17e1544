"""Run directories as the report reads them: all that is readable, and warnings about the rest."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

import numpy as np
from etils import epath

from nfllm.analysis.numerics import LAYER_SITES
from nfllm.config import Config, ModelConfig
from nfllm.config.derived import Site
from nfllm.rundir import CORPUS_FILE, RunError, RunRecord, read_record, resolve, run_directory
from nfllm.rundir.metrics import Metrics, read_metrics

Result = TypeVar("Result")

# Rank of each recorded quantity, the axis of steps not counted.
_RANKS = {
    ("train", "loss_nats"): 0,
    ("train", "grad_norm"): 0,
    ("train", "tokens"): 0,
    ("train", "tokens_per_second"): 0,
    ("eval", "eval_loss_nats"): 0,
    ("eval", "eval_perplexity"): 0,
    ("telemetry", "entropy_nats"): 2,
    ("telemetry", "logit_max_abs"): 2,
    ("telemetry", "mlp_pre_rms"): 1,
    ("telemetry", "mlp_pre_participation"): 1,
    ("telemetry", "mlp_post_participation"): 1,
    ("telemetry", "residual_rms"): 1,
    ("telemetry", "residual_max_abs"): 1,
    ("telemetry", "negative_slopes"): 1,
    ("train", "entropy_penalty"): 0,
    ("telemetry", "entropy_threshold"): 2,
    ("telemetry", "temperature_min"): 2,
    ("telemetry", "temperature_max"): 2,
    ("telemetry", "temperature_not_positive"): 2,
    ("telemetry", "residual_gain"): 1,
    ("telemetry", "mlp_alpha"): 1,
    **{
        ("telemetry", f"saturation_{site}"): 0 if site in ("embedding", "final") else 1
        for site in get_args(Site)
    },
}
_ENDINGS = {
    "started": "unfinished",
    "resumed": "unfinished",
    "interrupted": "interrupted",
    "stopped": "stopped by a non-finite value",
    "finished": "finished",
    "frozen": "frozen",
    "frozen and folded": "frozen and folded",
}
_ACTIVATION_LETTERS = {"gelu": "+G", "relu": "+R", "identity": ""}
_NORMALIZATION_LETTERS = {"layernorm": "+LN", "none": ""}


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """What could be read of one run directory.

    `label` is short and unique among the runs of one report. `series` has, for each quantity that
    was recorded, its steps `[N]` and values `[N, ...]`; `nonfinite` has steps `[N]` and counts
    `[N, L]` by site, in order of execution. `corpus` is the corpus card, nested keys joined by
    dots.
    """

    name: str
    label: str
    record: RunRecord | None
    metrics: Metrics
    series: Mapping[str, tuple[np.ndarray, np.ndarray]]
    nonfinite: tuple[np.ndarray, Mapping[str, np.ndarray]] | None
    corpus: Mapping[str, str]
    warnings: tuple[str, ...]

    @property
    def model(self) -> ModelConfig | None:
        """The model's configuration; None if `config.json` could not be read."""
        return None if self.record is None else self.record.config.model

    @property
    def notation(self) -> str:
        """The papers' name of its model; empty if `config.json` could not be read."""
        return "" if self.record is None else notation(self.record.config)

    @property
    def step(self) -> int:
        """The last step that any line of the metrics names."""
        return max((rows[-1]["step"] for rows in self.metrics.rows.values() if rows), default=0)

    @property
    def status(self) -> str:
        """How the run ended, in words, by its last event that starts or ends training."""
        if self.record is not None and self.record.is_imported:
            return "imported"
        events = [row.get("event") for row in self.metrics.rows["event"]]
        return _ENDINGS[next((e for e in reversed(events) if e in _ENDINGS), "started")]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, without those of steps that the run went back behind."""
        found: list[dict[str, Any]] = []
        for row in self.metrics.rows["event"]:
            if row.get("event") == "started":
                found = []
            elif row.get("event") == "resumed":
                found = [earlier for earlier in found if earlier["step"] <= row["step"]]
            elif row.get("event") == kind:
                found.append(row)
        return found

    def label_at(self, site: str) -> str:
        """The label of a panel that shows one site of this run."""
        return f"{self.label} · {site}"

    def last(self, field: str) -> Any:
        """The newest value of a quantity; None if it was never recorded."""
        if field not in self.series:
            return None
        value = self.series[field][1][-1]
        return float(value) if np.ndim(value) == 0 else value


BASELINE = "SM+LN+G"
"""The papers' name of the usual decoder, with LayerNorm and GELU."""


def notation(config: Config) -> str:
    """The papers' name of a model: SM softmax, LN LayerNorm, G GELU, R ReLU.

    Parts that the model lacks are left out. Other mixers, normalizations and activations are
    spelled out: `SM+rmsnorm+silu`, with ` (gated)` if the MLP has a gate; if attention and MLP
    differ in their normalization, both are named, with `|` between; a placement other than `pre`
    follows, `SM+LN (post)+G`. From arXiv 2501.03489: (t) learned temperatures, Sc scaled, Fu fused,
    FFN a linear MLP, i6 six pruned layers, EReg the entropy regularizer.
    """
    model = config.model
    softmax = "SM" if model.softmax_temperature == "none" else "SM(t)"
    mixer = softmax if model.has_attention_maps else model.mixer
    first, second = model.normalization_of("attention"), model.normalization_of("mlp")
    letters = _NORMALIZATION_LETTERS.get(first, f"+{first}")
    normalization = letters if first == second else f"+{first}|{second}"
    if normalization and model.norm_placement != "pre":
        normalization += f" ({model.norm_placement})"
    pruned = f" i{model.mlp_pruned_layers}" if model.mlp_pruned_layers else ""
    name = f"{mixer}{normalization}{_mlp_notation(model)}{pruned}"
    return f"EReg({name})" if config.objective.entropy_weight else name


def _mlp_notation(model: ModelConfig) -> str:
    if model.mlp == "none":
        return " without FFN"
    scaled = "Sc" if model.mlp_scaling == "learned" else ""
    if model.mlp == "fused":
        return f"+{scaled}FuFFN"
    if scaled and model.activation == "identity":
        return "+ScFFN"
    activation = _ACTIVATION_LETTERS.get(model.activation, f"+{model.activation}")
    if model.mlp == "gated":
        activation += " (gated)" if activation else "+gated"
    if model.negative_slope is not None:
        activation += f" {model.negative_slope:g}"
    if model.slope_sharing is not None:
        activation += f" ({model.slope_sharing})"
    return f"{activation}+Sc" if scaled else activation


def read_runs(
    paths: Sequence[epath.PathLike], labels: Sequence[str] | None = None
) -> list[ReportedRun]:
    """Reads each run directory; a fault in one becomes a warning of that run.

    Args:
      paths: run directories.
      labels: one for each run; by default the notation of its model, with the run's name added if
        several runs share the notation.

    Raises:
      RunError: a path is not a directory, or is named twice.
    """
    directories = [resolve(run_directory(path)) for path in paths]
    for directory in directories:
        if not directory.is_dir():
            raise RunError(f"{directory} is not a directory; name the directory of a run")
        if directories.count(directory) > 1:
            raise RunError(f"{directory} is named twice; name each run once")
    names = _names(directories)
    records = [_tried(read_record, directory) for directory in directories]
    notations = ["" if record is None else notation(record.config) for record, _ in records]
    counts = Counter(notations)
    runs = []
    for index, (directory, name, short, (record, faults)) in enumerate(
        zip(directories, names, notations, records, strict=True)
    ):
        label = " · ".join(filter(None, [short, name if counts[short] > 1 or not short else ""]))
        if labels is not None:
            label = labels[index]
        metrics = read_metrics(directory)
        faults += metrics.warnings
        series = _series(metrics, faults)
        nonfinite = _nonfinite(metrics, faults)
        corpus, corpus_faults = _tried(_read_corpus, directory)
        faults += corpus_faults
        runs.append(
            ReportedRun(
                name, label, record, metrics, series, nonfinite, corpus or {}, tuple(faults)
            )
        )
    return runs


def _tried(
    read: Callable[[epath.Path], Result], directory: epath.Path
) -> tuple[Result | None, list[str]]:
    """What `read` returns and no faults, or None and what is wrong with the directory."""
    try:
        return read(directory), []
    except RunError as error:
        return None, [str(error)]


def _read_corpus(directory: epath.Path) -> dict[str, str]:
    path = directory / CORPUS_FILE
    if not path.exists():
        return {}
    try:
        return dict(_flat(json.loads(path.read_bytes())))
    except ValueError as error:
        raise RunError(f"{path} is incomplete or not JSON ({error})") from error


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as pairs of dotted key and text."""
    if not isinstance(values, dict):
        yield prefix, ", ".join(map(str, values)) if isinstance(values, list) else str(values)
        return
    for key, value in values.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def _series(metrics: Metrics, faults: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    series = {}
    for (kind, field), rank in _RANKS.items():
        if field not in metrics.fields(kind):
            continue
        try:
            steps, values = metrics.series(kind, field)
        except (TypeError, ValueError) as error:
            faults.append(f"{field} is not an array of numbers of one shape ({error}); left out")
            continue
        if values.ndim != rank + 1 or values.size == 0:
            faults.append(f"{field} has shape {list(values.shape[1:])}, not {rank} axes; left out")
            continue
        series[field] = steps, values
    return series


def _nonfinite(
    metrics: Metrics, faults: list[str]
) -> tuple[np.ndarray, Mapping[str, np.ndarray]] | None:
    rows = [row for row in metrics.rows["telemetry"] if row.get("nonfinite")]
    if not rows:
        return None
    sites = sorted(rows[0]["nonfinite"], key=_execution_order)
    try:
        counts = {
            site: np.asarray([row["nonfinite"][site] for row in rows], np.int64) for site in sites
        }
    except (KeyError, TypeError, ValueError) as error:
        faults.append(f"nonfinite is not a list of counts for each site ({error!r}); left out")
        return None
    if any(values.ndim != 2 for values in counts.values()):
        faults.append("nonfinite is not a list of counts for each site; left out")
        return None
    return np.asarray([row["step"] for row in rows]), counts


def _execution_order(site: str) -> int:
    return LAYER_SITES.index(site) if site in LAYER_SITES else len(LAYER_SITES)


def _names(directories: Sequence[epath.Path]) -> list[str]:
    """The last parts of each path, as few as distinguish all paths, without control characters."""
    parts = [directory.parts for directory in directories]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    names = ["/".join(part[-length:]) for part in parts]
    return ["".join(c if c.isprintable() else "\ufffd" for c in name) for name in names]
