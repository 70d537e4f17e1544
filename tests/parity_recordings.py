"""Reads the recordings of the code released with arXiv 2410.09637: its names, our configs.

A folder holds `manifest.json`, `shared_weights.npz`, `fwd_<regime>_<variant>.npz` and
`traj_<start>_<variant>[_eosmask].npz`; the unit recordings lie beside it in `units`. Keys of an npz
are plain names, or `GROUP/NAME`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path

import numpy as np

from nfllm.config import Config, ModelConfig, OptimizerConfig, TrainingConfig, get_config

DEFAULT = Config.from_dict(get_config())
OWN_CASES = Path(__file__).parent / "parity" / "cases"

_NORMALIZATIONS = {"ln": "layernorm", "free": "none"}
_SLOPE_SHARING = {"per_layer": "layer", "global": "untied_global"}


@dataclasses.dataclass(frozen=True)
class Recording:
    """One forward or trajectory file.

    `arrays` holds the plain keys, `groups` the others by group; `params` are the parameters at the
    start, under the released code's names.
    """

    path: Path
    arrays: dict[str, np.ndarray]
    groups: dict[str, dict[str, np.ndarray]]
    meta: dict[str, object]
    params: dict[str, np.ndarray]
    config: ModelConfig
    vocab_size: int

    @property
    def regime(self) -> str:
        """`init` or `scaled`, which the file is named after."""
        return self.path.stem.split("_")[1]

    def noise(self, name: str) -> float:
        """How far the recorded float32 numbers lie from a float64 run; 0 where that is unknown."""
        return float(self.groups.get("noise", {}).get(name, 0.0))

    def relative_noise(self, name: str) -> float:
        """The same of a trajectory's losses and norms, relative."""
        exact = self.groups.get("f64", {}).get(name)
        return 0.0 if exact is None else float(np.abs(self.arrays[name] / exact - 1).max())

    def final_noise(self) -> float:
        """The same of a trajectory's last parameters, slopes and key biases left out."""
        return float(self.groups.get("noise", {}).get("final_vs_f64_maxabs", [0.0])[0])


def forward_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("fwd_*.npz"))


def trajectory_files(folder: Path) -> list[Path]:
    batches = set(folder.glob("traj_batches*.npz"))
    return sorted(path for path in folder.glob("traj_*.npz") if path not in batches)


def unit_files(folder: Path) -> list[Path]:
    """The unit recordings beside `folder`, or the repository's own where it has none."""
    return sorted((folder.parent / "units").glob("*.npz")) or sorted(
        (OWN_CASES.parent / "units").glob("*.npz")
    )


def variant(path: Path) -> str:
    """The variant's name in the manifest: `free_relu` of `traj_init_free_relu_eosmask.npz`."""
    return path.stem.split("_", 2)[2].removesuffix("_eosmask")


@functools.cache
def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@functools.cache
def read(path: Path) -> Recording:
    arrays: dict[str, np.ndarray] = {}
    groups: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            group, _, name = key.rpartition("/")
            (groups.setdefault(group, {}) if group else arrays)[name] = file[key]
    meta = {name: value.item() for name, value in groups.pop("meta").items()}
    own = groups.get("init", {}) if path.stem.startswith("traj") else groups.get("param", {})
    params = {**_shared_weights(path.parent, meta), **own}
    config = _model_config(meta, params, manifest(path.parent))
    return Recording(
        path, arrays, groups, meta, params, config, params["transformer.wte.weight"].shape[0]
    )


def context(recording: Recording) -> int:
    """Number of leading rows of the position table that are used."""
    return batches(recording.path.parent / recording.meta["batches"])[0].shape[-1]


@functools.cache
def batches(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and labels `[steps, micro-batches, B, T]`, in the order of consumption."""
    with np.load(path) as file:
        return file["input_ids"], file["labels"]


def _shared_weights(folder: Path, meta: dict[str, object]) -> dict[str, np.ndarray]:
    """The matrices, stored once at their initial values, times the two factors of this file."""
    embedding = np.float32(meta.get("scale_emb", 1.0))
    block = np.float32(meta.get("scale_block", 1.0))
    with np.load(folder / "shared_weights.npz") as file:
        return {
            key.removeprefix("param/"): file[key]
            * (embedding if re.search(r"\.w[tp]e\.", key) else block)
            for key in file.files
        }


def _model_config(
    meta: dict[str, object], params: dict[str, np.ndarray], sizes: dict
) -> ModelConfig:
    activation = meta["activation_function"]
    options: dict[str, object] = {"activation": activation}
    if activation in ("leaky_relu", "learnable_lrelu"):
        options["negative_slope"] = float(meta["lrelu_neg_slope"])
    if activation == "learnable_lrelu":
        options["activation"] = "learnable_leaky_relu"
        options["slope_sharing"] = _SLOPE_SHARING[meta["learnable_lrelu_mode"]]
    layers = {int(name.split(".")[2]) for name in params if name.startswith("transformer.h.")}
    return dataclasses.replace(
        DEFAULT.model,
        num_layers=len(layers),
        num_heads=int(meta.get("n_head", sizes["H"])),
        embed_dim=params["transformer.wte.weight"].shape[1],
        mlp_dim=params["transformer.h.0.mlp.c_fc.weight"].shape[1],
        context_length=params["transformer.wpe.weight"].shape[0],
        normalization=_NORMALIZATIONS[meta["norm_type"]],
        attention_bias="qk",
        init_std_scaling="none",
        **options,
    )


def recipe(steps: int, micro_batches: int) -> tuple[OptimizerConfig, TrainingConfig]:
    """The released training options, as nfllm names them."""
    optimizer = dataclasses.replace(
        DEFAULT.optimizer,
        variant="hf_adamw",
        learning_rate=1e-3,
        final_learning_rate=1e-7,
        schedule="polynomial",
        schedule_power=1.0,
        warmup_fraction=0.05,
        warmup_from_zero=True,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        weight_decay=0.1,
        decay_slopes=True,
        clip_norm=1.0,
        accumulation_weighting="micro_batch",
    )
    training = dataclasses.replace(
        DEFAULT.training,
        steps=steps,
        batch_size=micro_batches,
        gradient_accumulation=micro_batches,
        dtype="float32",  # as recorded; "auto" is bfloat16 on a GPU
    )
    return optimizer, training
