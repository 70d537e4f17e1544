"""Model, data and compiled steps of a run, built from a config and checked."""

from __future__ import annotations

import functools
import os

import jax
import numpy as np

from nfllm import data
from nfllm.analysis import Ledger
from nfllm.config import Config, ConfigError
from nfllm.config.paths import make_writable, user_path
from nfllm.data import batches
from nfllm.data.corpora import default_data_dir
from nfllm.model.attention_implementation import check_implementation, implementation_of_step
from nfllm.model.parameters import Variables
from nfllm.model.part_checks import check_waiting
from nfllm.trainer import hosts
from nfllm.trainer.batch_division import configure_devices
from nfllm.trainer.evaluation import Evaluation, evaluate
from nfllm.trainer.parts import put_parts
from nfllm.trainer.placement import Placement
from nfllm.training.build import build, dtype_of
from nfllm.training.diagnosis import make_diagnosis
from nfllm.training.state import SavedState, TrainState
from nfllm.training.telemetry import make_probe


class Program:
    """The model, its data, and its compiled steps.

    It checks everything that does not depend on the data, then prepares the data. A step is
    compiled when it is first called.

    Raises:
      ConfigError: a batch does not divide over the devices or exceeds the number of windows, or
        JAX_ENABLE_X64 is set.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        training = config.training
        _check_precision()
        configure_devices(config)
        _use_compilation_cache(training.compilation_cache)
        self.placement = Placement(config)
        dtype = dtype_of(training.dtype)
        check_implementation(config.model, dtype)
        check_waiting()

        self.dataset = data.load(
            config.data, config.model.context_length, progress=hosts.is_first()
        )
        windows = len(self.dataset.train)
        if windows < training.batch_size:
            raise ConfigError(
                f"training.batch_size={training.batch_size} exceeds the {windows} windows of the "
                "training split; lower it or model.context_length, or add documents"
            )
        built = build(config, self.dataset.tokenizer.vocab_size)
        self.model, self._init = built.model, built.init
        self.train_step = self.placement.train_step(built.train_step)
        self._eval_step = self.placement.eval_step(built.eval_step)
        self._probe = make_probe(self.model, self.placement.replicated)
        self._forms_maps = bool(built.auxiliaries) or (
            config.telemetry.entropy_every_step or config.optimizer.qk_clip is not None
        )
        self._diagnose = make_diagnosis(
            config, self.model, built.auxiliaries, self.placement.replicated
        )

    def describe(self) -> str:
        """What runs where, in a line."""
        model = self.model
        attention: str = model.config.mixer
        if model.config.has_attention_maps:
            attention = implementation_of_step(
                model.config, model.dtype, with_entropy=self._forms_maps
            )
        return (
            f"{model.config.architecture}, {jax.device_count()} {jax.default_backend()} device(s), "
            f"{model.dtype} products, {attention} attention"
        )

    def init_state(self) -> TrainState:
        """The state before the first step."""
        return self.placement.init(self._init, jax.random.key(self.config.training.seed))

    def abstract_state(self) -> SavedState:
        """Shapes, types and shardings of the state, without computing it."""
        return self.placement.abstract(self._init)

    def train_batch(self, step: int) -> batches.Batch:
        """The rows of global batch number `step` that belong to this process, on the host."""
        training = self.config.training
        return batches.train_batch(
            self.dataset.train,
            training.seed,
            step,
            training.batch_size,
            ignored_id=self.dataset.ignored_id,
            micro_batches=self.placement.micro_batches,
            shard=jax.process_index(),
            num_shards=jax.process_count(),
        )

    def train_batches(self, start: int) -> batches.Prefetcher[batches.Batch]:
        """The batches from number `start` to the end of the run, a few ahead on the devices."""
        stop = self.config.training.steps
        return batches.prefetch(self.train_batch, start, stop, self.placement.put_train)

    def evaluate(self, state: TrainState) -> Evaluation:
        """Loss and perplexity over the validation split."""
        found = batches.evaluation_batches(
            self.dataset.validation,
            self.config.evaluation.batch_size,
            ignored_id=self.dataset.ignored_id,
            max_windows=self.config.evaluation.max_windows,
            shard=jax.process_index(),
            num_shards=jax.process_count(),
        )
        return evaluate(self._eval_step, state.params, found, self.placement.put_eval)

    def probe(self, state: TrainState) -> Variables:
        """The telemetry fields on the fixed probe batch."""
        return self._probe(state.params, self._probe_tokens)

    def diagnose(self, state: TrainState, step: int, loss_scale: float) -> Ledger:
        """Counts of non-finite values when the state is trained on batch number `step`."""
        training = self.config.training
        whole = batches.train_batch(
            self.dataset.train,
            training.seed,
            step,
            training.batch_size,
            ignored_id=self.dataset.ignored_id,
        )
        parts = put_parts(self.placement, whole)
        micro_batches = self.placement.micro_batches
        with self.placement.split_by_sequence(parts.tokens.shape[1]):
            return self._diagnose(state.params, parts, step, loss_scale, micro_batches)

    @functools.cached_property
    def _probe_tokens(self) -> jax.Array:
        windows = self.dataset.validation
        count = min(self.config.telemetry.probe_windows, len(windows))
        # Spread over the split, since its first windows may all come from one document.
        indices = np.linspace(0, len(windows) - 1, count).astype(np.int64)
        return self.placement.put_probe(windows.gather(indices))


def _check_precision() -> None:
    """Raises ConfigError if JAX would turn some of the float32 state into float64."""
    if jax.config.read("jax_enable_x64"):
        raise ConfigError(
            "JAX_ENABLE_X64 is set, but training is in float32 (or training.dtype): unset it. "
            "nfllm.analysis works with it"
        )


def _use_compilation_cache(directory: str | None) -> None:
    if directory == "":
        return
    if directory is None:
        try:
            path = default_data_dir() / "compiled"
        except ConfigError:  # without a folder JAX does not cache
            return
    else:
        path = user_path(directory, "training.compilation_cache")
        make_writable(path, "training.compilation_cache")
    jax.config.update("jax_compilation_cache_dir", os.fspath(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
