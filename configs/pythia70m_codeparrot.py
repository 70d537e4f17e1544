"""Pythia-70M (GPT-NeoX, 6 layers) on CodeParrot, as in arXiv 2410.09637.

    python train.py --config configs/pythia70m_codeparrot.py:sm+r --workdir runs/pythia-sm+r

The name after the colon is one of `VARIANTS` in nfllm/papers/variants.py; without it, sm+r.

Hardware: a GPU; the paper used one RTX 3090. Time: 6e17 floating-point operations, so 1 to 2 hours
at a sustained 100 TFLOP/s (estimated, not measured). Needs internet once, for the corpus.

Perplexity to expect, as published (not measured with this code):

                   sm+ln+g  sm+ln+r  sm+ln   sm+g   sm+r
    128 tokens       3.512    3.590  4.445  4.086  3.736
    256 tokens       3.054    3.107  3.836  3.570  3.273

For 256 tokens add `--config.model.context_length=256 --config.training.steps=16300`: an epoch has
half as many windows.

The released code has no Pythia: block, biases, head and the absence of dropout are those of
`GPTNeoXForCausalLM` in transformers.
"""

from ml_collections import ConfigDict

from configs.codeparrot_recipe import apply_recipe
from configs.default import get_config as default_config


def get_config(variant: str = "sm+r") -> ConfigDict:
    """The recipe with the given variant of the model."""
    config = default_config()
    model = config.model
    model.architecture = "gpt_neox"
    model.num_layers = 6
    model.num_heads = 8
    model.embed_dim = 512
    model.attention_bias = "all"
    model.mlp_bias = True
    model.rotary_fraction = 0.25
    return apply_recipe(config, variant)
