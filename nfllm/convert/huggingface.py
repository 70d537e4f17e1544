"""Reading and writing Hugging Face checkpoints, `config.json` and safetensors, without torch."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from nfllm.config import ConfigError, ModelConfig, suggest
from nfllm.convert import gpt2, gpt_neox, llama
from nfllm.convert.foreign import Attributes, ConversionError, TensorReader, Tensors
from nfllm.convert.stock_norms import read_frozen, stock_form
from nfllm.model.parameters import Params

CONFIG_FILE = "config.json"
TENSORS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"

# Heads other than the language model's, which transformers ignores.
_OTHER_HEADS = re.compile(r"(multiple_choice_head|v_head)\.")

_FORMATS: dict[str, ModuleType] = {"gpt2": gpt2, "gpt_neox": gpt_neox, "llama": llama}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model that was read from a Hugging Face checkpoint, or is to be written as one.

    Attributes:
      config: the architecture.
      vocab_size: rows of the embedding; at least the size of the tokenizer, often padded.
      params: the parameters of `Decoder(config, vocab_size)`, float32.
    """

    config: ModelConfig
    vocab_size: int
    params: Params


def load_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint:
    """Reads a GPT-2, GPT-NeoX or Llama checkpoint that transformers wrote.

    Args:
      directory: a local directory with `config.json` and `model.safetensors`, or the parts that
        `model.safetensors.index.json` lists. Nothing is downloaded.

    Raises:
      ConversionError: a file is missing or unreadable, the architecture is not supported, or an
        attribute or a tensor is not understood.

    Returns:
      The model's config, vocabulary and parameters, in float32.

    Example:
      >>> import nfllm
      >>> gpt2 = load_checkpoint("gpt2")
      >>> model = nfllm.Decoder(gpt2.config, gpt2.vocab_size)
      >>> captured = nfllm.capture(model, gpt2.params, [[0, 1, 2, 1]])
    """
    folder = Path(directory)
    values = read_json(folder / CONFIG_FILE)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise ConversionError(
            f"{folder / CONFIG_FILE}: model_type={kind!r} cannot be converted; "
            f"{suggest(str(kind), _FORMATS)}"
        )
    form = _FORMATS[kind]
    try:
        config, vocab_size = form.read_config(Attributes(values, str(folder / CONFIG_FILE)))
    except ConfigError as error:  # in our names for its sizes
        raise ConversionError(f"{folder / CONFIG_FILE} describes no model: {error}") from error
    reader = TensorReader(_read_tensors(folder, form, config), f"the checkpoint in {folder}")
    params = form.read_tensors(reader, config, vocab_size)
    reader.finish()
    config, params = read_frozen(config, params)
    return Checkpoint(config, vocab_size, params)


def save_checkpoint(
    directory: str | os.PathLike[str], checkpoint: Checkpoint, end_of_text_id: int | None = None
) -> None:
    """Writes `model.safetensors`, then `config.json`, for transformers to load.

    Args:
      directory: where to write; it is created.
      checkpoint: a model with an activation that transformers has, and with LayerNorm or with norms
        that are all frozen or removed (`nfllm.convert.stock_norms`); or, of the architecture
        `llama`, with RMSNorm and gated MLPs. Biases that it lacks are written as zeros.
      end_of_text_id: written as `bos_token_id` and `eos_token_id`.

    Raises:
      ConfigError: the model cannot be expressed in transformers; the message names the key.
    """
    config, params = stock_form(checkpoint.config, jax.tree.map(np.asarray, checkpoint.params))
    form = _FORMATS[config.architecture]
    end_of_text_id = None if end_of_text_id is None else int(end_of_text_id)
    values = {
        "architectures": [form.ARCHITECTURE],
        "model_type": config.architecture,
        "vocab_size": checkpoint.vocab_size,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "torch_dtype": "float32",
        **form.write_config(config),
    }
    tensors = form.write_tensors(params, config)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
        folder / TENSORS_FILE,
        metadata={"format": "pt"},
    )
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    # safetensors makes files readable only for their owner, whatever the umask is.
    shutil.copymode(folder / CONFIG_FILE, folder / TENSORS_FILE)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ConversionError: the file is missing, or is not a JSON object.
    """
    if not path.parent.is_dir():
        raise ConversionError(
            f"{path.parent} is not a directory; nothing is downloaded, so name one that holds a "
            f"checkpoint's {CONFIG_FILE} and {TENSORS_FILE}, or an nfllm run"
        )
    if not path.exists():
        raise ConversionError(f"{path.parent} has no {path.name}; is it a checkpoint's directory?")
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConversionError(f"{path} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConversionError(f"{path} is not a JSON object")
    return values


def _read_tensors(folder: Path, form: ModuleType, config: ModelConfig) -> Tensors:
    """Tensors under full names, without buffers and without the copy of a tied head."""
    tensors: Tensors = {}
    for path in _tensor_files(folder):
        tensors |= _read_file(path)
    tensors = {
        _whole_name(name, form): tensor
        for name, tensor in tensors.items()
        if not _OTHER_HEADS.match(name)
    }
    tensors = {name: x for name, x in tensors.items() if not form.BUFFERS.fullmatch(name)}
    names = form.NAMES
    if config.ties_embeddings and names.head in tensors:
        head = tensors.pop(names.head)
        if not np.array_equal(tensors.setdefault(names.embedding, head), head):
            raise ConversionError(
                f"{folder}: {names.head!r} differs from {names.embedding!r}, but its config.json "
                "says that they are tied; set tie_word_embeddings to false there"
            )
    return tensors


def _whole_name(name: str, form: ModuleType) -> str:
    """The tensor's name in a checkpoint of the language model, as transformers 4 writes it.

    Transformers 5 may write every output head as `lm_head`. Files of the base model, such as the
    hub's gpt2, leave out the prefix.
    """
    if name == "lm_head.weight":
        return form.NAMES.head
    return name if name.startswith((form.PREFIX, form.NAMES.head)) else form.PREFIX + name


def _read_file(path: Path) -> Tensors:
    """The tensors of one file, including those that are stored under another name.

    Of tensors that share memory `safetensors.torch.save_model` stores only one, and lists the names
    of the others in the file's metadata: `{other: stored}`.
    """
    try:
        tensors: Tensors = safetensors.numpy.load_file(path)
        with safetensors.safe_open(path, "numpy") as file:
            notes = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ConversionError(f"{path} is not a complete safetensors file ({error})") from error
    except AttributeError as error:  # a type that NumPy does not have
        raise ConversionError(
            f"{path} has tensors of a type that cannot be read ({error}); dequantize the model "
            "first"
        ) from error
    same = {other: tensors[stored] for other, stored in notes.items() if stored in tensors}
    return same | tensors


def _tensor_files(folder: Path) -> list[Path]:
    if (folder / TENSORS_FILE).exists():
        return [folder / TENSORS_FILE]
    if (folder / _INDEX_FILE).exists():
        names = read_json(folder / _INDEX_FILE).get("weight_map")
        if not isinstance(names, dict):
            raise ConversionError(f"{folder / _INDEX_FILE} has no weight_map")
        return [folder / name for name in sorted(set(names.values()))]
    raise ConversionError(
        f"{folder} has no {TENSORS_FILE}; pickled weights (pytorch_model.bin) are not read, since "
        "loading them runs code: save the model with transformers' save_pretrained first"
    )
