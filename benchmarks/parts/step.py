"""The training step of GPT-2 124M: whole, with parts left out, and with each default reversed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import jax
from programs import GPT2_124M, LOGITS_16, SMALL, VARIANTS, Trainer, Workload, make_config
from timing import compilations

from nfllm.model.tuning import TUNINGS, tuning
from parts.facts import median_seconds
from parts.rows import Row, Rows, halving

RELU, LN_GELU = VARIANTS
LENGTHS = (128, 1024)
NOMINAL_TFLOPS = {"H100": 989.0, "H200": 989.0}  # dense bfloat16, by NVIDIA's data sheets


_WHOLE_LOGITS = {"tile_logits": None, "tile_logits_16_bit": None}
_FEW = 0.25
_AT_ONCE = 8  # programs that compile at the same time; nothing is timed meanwhile


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: the trained config, and how it differs from the default."""

    name: str
    variant: str
    context_length: int = 128
    ablation: str = ""
    sections: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    tuned: dict[str, Any] = dataclasses.field(default_factory=dict)
    batch_factor: float = 1.0


def cases() -> list[Case]:
    """The whole steps first, then the alternatives to each default, and steps without a part."""
    found = [
        Case(f"{variant} T {length}", variant, length) for length in LENGTHS for variant in VARIANTS
    ]
    for length in LENGTHS:
        found += _recomputed(length) + _other_attention(length) + _with_entropy(length)
        name = f"{RELU} T {length}"
        found += [
            Case(f"{name}, {part}", RELU, length, ablation=part)
            for part in ("no head", "no attention", "no optimizer", "forward only")
        ]
        found.append(Case(f"{name}, {LOGITS_16}", RELU, length, ablation=LOGITS_16))
    for length in LENGTHS:
        for variant in VARIANTS:
            found += _other_programs(variant, length)
    found += [
        Case(f"{RELU} T 128, batch x {factor:g}", RELU, batch_factor=factor) for factor in (0.5, 2)
    ]
    return found


def _recomputed(length: int) -> list[Case]:
    """Norms and GELU kept for the backward pass if the default recomputes them, or the reverse."""
    found = []
    for key, what in (("recompute_norms", "norms"), ("recompute_activations", "GELU")):
        recompute = not getattr(tuning(), key)
        label = f"{LN_GELU} T {length}, {what} {'again' if recompute else 'kept'}"
        found.append(Case(label, LN_GELU, length, tuned={key: recompute}))
    return found


def _other_attention(length: int) -> list[Case]:
    """Explicit attention if cuDNN is the default, or the reverse; fewer sequences if T is long."""
    other = "explicit" if length >= tuning().attention_from else "cudnn"
    model = {"model": {"attention_implementation": other}}
    factor = _FEW if length > 128 else 1.0
    label = f"{RELU} T {length}{_suffix(factor)}, {other}"
    return [Case(label, RELU, length, sections=model, batch_factor=factor)]


def _with_entropy(length: int) -> list[Case]:
    """Entropy in every step, which needs whole maps: fewer sequences if T is long."""
    factor = _FEW if length > 128 else 1.0
    found = []
    for variant in VARIANTS:
        name = f"{variant} T {length}{_suffix(factor)}"
        if factor < 1:
            found.append(Case(name, variant, length, batch_factor=factor))
        entropy = {"telemetry": {"entropy_every_step": True}}
        found.append(
            Case(f"{name}, entropy", variant, length, sections=entropy, batch_factor=factor)
        )
    return found


def _other_programs(variant: str, length: int) -> list[Case]:
    """Layers scanned if the default unrolls them, or the reverse; and logits without tiles."""
    name, scanned = f"{variant} T {length}", not tuning().scan_layers
    scan = {"model": {"scan_layers": scanned}}
    return [
        Case(f"{name}, {'scanned' if scanned else 'unrolled'}", variant, length, sections=scan),
        Case(f"{name}, whole logits", variant, length, tuned=_WHOLE_LOGITS),
    ]


def _suffix(factor: float) -> str:
    return "" if factor == 1 else f", batch x {factor:g}"


def run(rows: Rows, rehearse: bool) -> None:
    waiting = [case for case in cases() if not rows.has(case.name)]
    if rehearse:  # each takes seconds to compile, and all run the same code
        waiting = [case for case in waiting if "cudnn" not in case.name][::8]
    kind = jax.devices()[0].device_kind
    nominal = next((tflops for name, tflops in NOMINAL_TFLOPS.items() if name in kind), None)
    for start in range(0, len(waiting), _AT_ONCE):
        some = waiting[start : start + _AT_ONCE]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            futures = [pool.submit(_compiled, case, rehearse) for case in some]
        for case, future in zip(some, futures, strict=True):
            rows.add(
                case.name,
                lambda c=case, f=future: halving(
                    _sequences(c, rehearse), lambda n: _measure(c, f, n, rehearse, nominal)
                ),
            )
    for variant in VARIANTS:
        rows.add(f"probe {variant}", lambda v=variant: _probe(v, rehearse))


def _workload(case: Case, sequences: int, rehearse: bool) -> Workload:
    if not rehearse:
        length = case.context_length
        return GPT2_124M._replace(context_length=length, sequences=sequences)
    length = case.context_length // 8
    return SMALL._replace(
        layers=2, width=32, vocab_size=128, context_length=length, sequences=sequences
    )


def _sequences(case: Case, rehearse: bool) -> int:
    tokens = 1024 if rehearse else 65536
    length = case.context_length // 8 if rehearse else case.context_length
    return max(1, int(tokens * case.batch_factor) // length)


def _trainer(case: Case, sequences: int, rehearse: bool) -> Trainer:
    workload = _workload(case, sequences, rehearse)
    sections = {
        **case.sections,
        "model": {**VARIANTS[case.variant], **case.sections.get("model", {})},
        "training": {"dtype": "bfloat16", "gradient_accumulation": 1},
        "evaluation": {"batch_size": 8 * jax.device_count()},
    }
    return Trainer(make_config(workload, **sections), workload, case.ablation)


@contextlib.contextmanager
def tuned(changes: dict[str, Any]) -> Iterator[None]:
    """A context in which `tuning()` has other values, for programs traced inside."""
    values = dataclasses.replace(tuning(), **changes)
    with mock.patch.dict(TUNINGS, {jax.default_backend(): values}):
        yield


def _compiled(case: Case, rehearse: bool) -> Trainer:
    trainer = _trainer(case, _sequences(case, rehearse), rehearse)
    trainer.compile(lambda: tuned(case.tuned))
    return trainer


def _measure(case: Case, future: Any, sequences: int, rehearse: bool, nominal: float | None) -> Row:
    if sequences == _sequences(case, rehearse):
        trainer = future.result()
    else:
        trainer = _trainer(case, sequences, rehearse)
        trainer.compile(lambda: tuned(case.tuned))
    try:
        trainer.step()  # makes the state
        with compilations() as compiled:
            seconds = median_seconds(trainer.step, 2 if rehearse else 10)
    finally:
        trainer.free()
    tokens = sequences * trainer.config.model.context_length
    tflops = trainer.flops / seconds / 1e12
    return {
        "ms": 1e3 * seconds,
        "finite": trainer.finite,
        "compilations": 1 + len(compiled),
        "tokens_per_second": tokens / seconds,
        "tflops": tflops,
        "nominal_share": tflops / nominal if nominal else None,
        "memory_gb": trainer.peak_bytes() / 1e9,
        "compile_seconds": trainer.compile_seconds,
    }


def _probe(variant: str, rehearse: bool) -> Row:
    case = Case("probe", variant)
    trainer = _compiled(case, rehearse)
    try:
        trainer.probe()
        return {"ms": 1e3 * median_seconds(lambda: trainer.probe(), 3 if rehearse else 10)}
    finally:
        trainer.free()
