"""What the CodeParrot runs of arXiv 2410.09637 have in common, and the models that it compares.

The names are the paper's: SM softmax attention, LN LayerNorm before attention and MLP, G GELU, R
ReLU; a missing letter means that the part is taken out. The final LayerNorm stays in all of them,
as in the released code.
"""

from typing import Any

from ml_collections import ConfigDict

from nfllm.config import ConfigError, suggest

VARIANTS: dict[str, dict[str, Any]] = {
    "sm+ln+g": {"normalization": "layernorm", "activation": "gelu"},
    "sm+ln+r": {"normalization": "layernorm", "activation": "relu"},
    "sm+ln": {"normalization": "layernorm", "activation": "identity"},
    "sm+g": {"normalization": "none", "activation": "gelu"},
    "sm+r": {"normalization": "none", "activation": "relu"},
    "sm": {"normalization": "none", "activation": "identity"},
    # The slope of the released command for norm-free leaky ReLU.
    "leaky": {"normalization": "none", "activation": "leaky_relu", "negative_slope": 0.1},
    "learnable_layer": {
        "normalization": "none",
        "activation": "learnable_leaky_relu",
        "negative_slope": 0.01,
        "slope_sharing": "layer",
    },
    # What the released code calls global is one slope a layer all the same; the one slope that this
    # name suggests is model.slope_sharing=model.
    "learnable_global": {
        "normalization": "none",
        "activation": "learnable_leaky_relu",
        "negative_slope": 0.01,
        "slope_sharing": "untied_global",
    },
}


def apply_recipe(config: ConfigDict, variant: str) -> ConfigDict:
    """Sets everything but the architecture: data, optimizer, precision, and the model's variant.

    Args:
      config: the default config with the sizes of a model; it is changed.
      variant: a key of `VARIANTS`, in any case.

    Returns:
      `config`.

    Raises:
      ConfigError: there is no such variant.
    """
    if variant.lower() not in VARIANTS:
        raise ConfigError(f"unknown variant {variant!r}; {suggest(variant.lower(), VARIANTS)}")
    model = config.model
    model.update(VARIANTS[variant.lower()])
    model.final_normalization = "layernorm"
    model.context_length = 128
    model.init_std = 0.02
    model.init_std_scaling = "none"

    data = config.data
    data.dataset = "codeparrot"
    data.split = "train[:600000]"
    data.validation_split = "separate"
    data.validation_source = "validation[:2000]"
    # The paper's tokenizer is huggingface-course/code-search-net-tokenizer, of this size; with a
    # copy of it, set data.tokenizer to the path of its tokenizer.json. Perplexities per token
    # compare only under one tokenizer.
    data.vocab_size = 50_000
    data.window = "documents"
    data.mask_end_of_text = True

    optimizer = config.optimizer
    optimizer.variant = "hf_adamw"
    optimizer.learning_rate = 1e-3
    optimizer.final_learning_rate = 1e-7
    optimizer.schedule = "polynomial"
    optimizer.schedule_power = 1.0
    optimizer.warmup_fraction = 0.05
    optimizer.warmup_from_zero = True
    optimizer.beta1 = 0.9
    optimizer.beta2 = 0.999
    optimizer.epsilon = 1e-8
    optimizer.weight_decay = 0.1
    optimizer.decay_slopes = True
    optimizer.clip_norm = 1.0
    optimizer.accumulation_weighting = "micro_batch"

    training = config.training
    training.steps = 32_600  # about one epoch
    training.batch_size = 512
    training.gradient_accumulation = 4
    training.seed = 1337
    training.dtype = "float16"
    training.log_every = 50

    config.evaluation.every = 1000
    config.evaluation.batch_size = 256
    config.telemetry.every = 500
    config.checkpoint.every = 1000
    return config
