"""Other implementations of GPT-2 124M, each timed in turns with nfllm's, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from peers import Step, hugging_face, plain_flax, plain_torch, torch_step, torch_version
from programs import GPT2_124M, SMALL, VARIANTS, Trainer, Workload, make_config

from parts.rows import Row, Rows, halving

RELU, LN_GELU = VARIANTS

Make = Callable[[Workload], Step]


def run(rows: Rows, rehearse: bool) -> None:
    makers: dict[str, Make] = {}
    if torch_version() is not None:
        for name, model in (("plain GPT-2", plain_torch), ("Hugging Face GPT-2", hugging_face)):
            makers[f"{name}, torch.compile"] = lambda w, m=model: torch_step(
                m(w), w, compiled=not rehearse
            )
    makers["plain GPT-2, flax.linen"] = plain_flax
    makers["nfllm norm-free ReLU"] = lambda w: _ours(w, RELU).step
    for length in (128, 1024):
        waiting = {n: m for n, m in makers.items() if not rows.has(f"{n} T {length}")}
        if waiting and not (rehearse and length == 1024):
            _against_ours(rows, length, waiting, rehearse)


def _against_ours(rows: Rows, length: int, makers: dict[str, Make], rehearse: bool) -> None:
    tokens = 256 if rehearse else 32768
    ours: dict[int, Trainer] = {}

    def measure(make: Make, sequences: int) -> Row:
        workload = _workload(length, sequences, rehearse)
        if sequences not in ours:
            ours.clear()
            ours[sequences] = _ours(workload, LN_GELU)
        begin = time.perf_counter()
        step = make(workload)
        step()
        first_seconds = time.perf_counter() - begin
        reference, peer = _in_turns(ours[sequences].step, step, 2 if rehearse else 10)
        _forget_torch_memory()
        return {
            "ms": 1e3 * float(np.median(peer)),
            "tokens_per_second": sequences * length / float(np.median(peer)),
            "nfllm_layernorm_gelu_ms": 1e3 * float(np.median(reference)),
            "nfllm_layernorm_gelu_is_faster_by": float(np.median(peer / reference)),
            "first_step_seconds": first_seconds,
        }

    for name, make in makers.items():
        rows.add(
            f"{name} T {length}",
            lambda m=make: halving(tokens // length, lambda n: measure(m, n)),
        )


def _in_turns(one: Step, other: Step, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each call of two steps that are called in turns, after two untimed rounds."""
    seconds: Any = ([], [])
    for number in range(rounds + 2):
        for job, found in zip((one, other), seconds, strict=True):
            begin = time.perf_counter()
            job()
            if number >= 2:
                found.append(time.perf_counter() - begin)
    return np.asarray(seconds[0]), np.asarray(seconds[1])


def _workload(length: int, sequences: int, rehearse: bool) -> Workload:
    base = SMALL._replace(layers=2, width=32, vocab_size=128) if rehearse else GPT2_124M
    return base._replace(context_length=length, sequences=sequences)


def _ours(workload: Workload, variant: str) -> Trainer:
    sections = {
        "model": VARIANTS[variant],
        "training": {"gradient_accumulation": 1},
        "evaluation": {"batch_size": 8 * jax.device_count()},
    }
    return Trainer(make_config(workload, **sections), workload)


def _forget_torch_memory() -> None:
    if torch_version() is not None:
        import gc

        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
