"""Tiny random models of transformers, recorded once by tests/recordings/record_hf.py."""

from pathlib import Path

import huggingface_outputs
import numpy as np
import pytest

from nfllm.convert import load_checkpoint

RECORDINGS = Path(__file__).parent / "recordings"
CASES = sorted(path.parent.name for path in RECORDINGS.glob("*/outputs.npz"))
SLOW = {"gpt2_untied_relu", "gpt_neox_tied_unbiased"}  # their siblings run before every commit


def test_the_recordings_are_there():
    assert CASES == [
        "gpt2",
        "gpt2_untied_relu",
        "gpt_neox",
        "gpt_neox_norm_free",
        "gpt_neox_tied_unbiased",
        "llama_grouped_biased",
        "llama_tied_relu",
    ]


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in CASES]
)
def test_outputs_equal_transformers(case: str):
    checkpoint = load_checkpoint(RECORDINGS / case)
    if case == "gpt_neox_norm_free":
        checkpoint = huggingface_outputs.without_block_norms(checkpoint)
    with np.load(RECORDINGS / case / "outputs.npz") as outputs:
        huggingface_outputs.check_outputs(checkpoint, outputs)
