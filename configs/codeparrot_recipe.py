"""Settings shared by the CodeParrot runs of arXiv 2410.09637."""

from ml_collections import ConfigDict

from nfllm.config import ConfigError, suggest
from nfllm.papers.variants import VARIANTS


def apply_recipe(config: ConfigDict, variant: str) -> ConfigDict:
    """Sets everything but the architecture: data, optimizer, precision, and the model's variant.

    Args:
      config: the default config with the sizes of a model; it is changed.
      variant: a key of `nfllm.papers.variants.VARIANTS`, in any case.

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
    # are comparable only with the same tokenizer.
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
