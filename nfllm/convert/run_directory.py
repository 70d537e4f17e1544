"""Conversion between run directories and Hugging Face checkpoints, as `python -m nfllm.convert`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

from nfllm.config import Config
from nfllm.config.paths import local_path
from nfllm.convert.foreign import ConversionError
from nfllm.convert.huggingface import (
    CONFIG_FILE,
    Checkpoint,
    load_checkpoint,
    read_json,
    save_checkpoint,
)
from nfllm.data.tokenizer import Tokenizer
from nfllm.model.parameters import Params, count_parameters
from nfllm.rundir import (
    TOKENIZER_FILE,
    UNKNOWN_DATA,
    RunRecord,
    imported_config,
    read_record,
    write_record,
)
from nfllm.trainer.checkpoints import Checkpoints, restore_params
from nfllm.training.state import SavedState
from nfllm.version import nfllm_version


def convert(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> str:
    """Converts a Hugging Face checkpoint to a run directory, or a run directory to a checkpoint.

    The `config.json` of `source` shows which of the two it is. A `tokenizer.json` is copied.

    Args:
      source: a local directory.
      destination: a directory that does not exist yet, or is empty.

    Returns:
      A sentence that says what was done.

    Raises:
      ConversionError: the source is neither of the two, is damaged or not understood, or the
        destination is not empty.
      RunError: the source is a run that cannot be read.
      ConfigError: the run's model cannot be expressed in transformers.
    """
    source, destination = local_path(source, "SRC"), local_path(destination, "DST")
    values = read_json(source / CONFIG_FILE)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConversionError(f"{destination} exists and is not empty; name a new directory")
    if "format_version" in values:
        return _export(source, destination)
    if "model_type" in values:
        return _import(source, destination)
    raise ConversionError(
        f"{source / CONFIG_FILE} has neither a format_version (of an nfllm run) nor a model_type "
        "(of a Hugging Face checkpoint)"
    )


def _import(source: Path, destination: Path) -> str:
    checkpoint = load_checkpoint(source)
    destination.mkdir(parents=True, exist_ok=True)
    config = imported_config(checkpoint.config)
    _write_parameters(destination, config, checkpoint.params)
    _, note = _read_tokenizer(source, checkpoint.vocab_size)
    _copy_tokenizer(source, destination)
    num_parameters = count_parameters(checkpoint.params)
    # Written last: a directory without this file does not count as a run.
    write_record(
        destination,
        RunRecord(
            config=config,
            vocab_size=checkpoint.vocab_size,
            num_parameters=num_parameters,
            data_fingerprint=UNKNOWN_DATA,
            decayed_parameters=(),
            undecayed_parameters=(),
            nfllm_version=nfllm_version(),
        ),
    )
    return f"imported {num_parameters:,} parameters into the run directory {destination}{note}"


def _write_parameters(run: Path, config: Config, params: Params) -> None:
    """Writes the parameters as the run's checkpoint of step 0."""
    state = SavedState.of_params(0, jax.tree.map(jnp.asarray, params))
    with Checkpoints(run, config.checkpoint) as checkpoints:
        checkpoints.save(state, UNKNOWN_DATA)


def _export(source: Path, destination: Path) -> str:
    record = read_record(source)
    step, params = restore_params(source)
    checkpoint = Checkpoint(record.config.model, record.vocab_size, params)
    tokenizer, note = _read_tokenizer(source, record.vocab_size)
    save_checkpoint(
        destination, checkpoint, None if tokenizer is None else tokenizer.end_of_text_id
    )
    _copy_tokenizer(source, destination)
    if tokenizer is not None:
        _write_tokenizer_config(destination, tokenizer, record.config.model.context_length)
    return (
        f"exported the parameters of step {step} to the Hugging Face checkpoint {destination}{note}"
    )


def _copy_tokenizer(source: Path, destination: Path) -> None:
    if (source / TOKENIZER_FILE).exists():
        shutil.copyfile(source / TOKENIZER_FILE, destination / TOKENIZER_FILE)


def _read_tokenizer(source: Path, vocab_size: int) -> tuple[Tokenizer | None, str]:
    """The tokenizer, None if it is missing or cannot be read, and a note about it."""
    file = source / TOKENIZER_FILE
    if not file.exists():
        return None, f"; there was no {TOKENIZER_FILE}: use the model with token ids"
    try:
        tokenizer = Tokenizer.load(file)
    except ValueError as error:
        return None, (
            f"; its {TOKENIZER_FILE} was copied but cannot be used ({error}): use the model with "
            "token ids"
        )
    if tokenizer.vocab_size <= vocab_size:
        return tokenizer, ""
    return tokenizer, (
        f"; {TOKENIZER_FILE} has ids up to {tokenizer.vocab_size - 1}, beyond the model's table of "
        f"{vocab_size}: is it this model's? Texts with such an id will be an error"
    )


def _write_tokenizer_config(folder: Path, tokenizer: Tokenizer, context_length: int) -> None:
    """Writes the file that transformers reads beside `tokenizer.json`."""
    end_of_text = tokenizer.decode([tokenizer.end_of_text_id])
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values, indent=2) + "\n")
