"""GPT-2 (12 layers, 124M parameters) on CodeParrot, as in arXiv 2410.09637.

    python train.py --config configs/gpt2_codeparrot.py:sm+r --workdir runs/gpt2-sm+r

The name after the colon is one of `VARIANTS` in nfllm/papers/variants.py; without it, sm+r.

Hardware: a GPU; the paper used one RTX 3090. Time: 1.6e18 floating-point operations, so 4 to 5
hours at a sustained 100 TFLOP/s (estimated, not measured). Needs internet once, for the corpus.

Perplexity to expect, as published (not measured with this code):

    sm+ln+g  2.688    sm+g  3.197    leaky  3.081 (arXiv 2603.06922)
    sm+ln+r  2.757    sm+r  2.936    sm     diverges
    sm+ln    3.380

The paper's reruns of one model differ by 0.6 to 1.8%.

With batches of 4 sequences in place of 512, norm-free models of this depth and width diverged in
the warmup toward this learning rate, within 900 steps (RESULTS.md); with 512 it was not tried.
"""

from ml_collections import ConfigDict

from configs.codeparrot_recipe import apply_recipe
from configs.default import get_config as default_config


def get_config(variant: str = "sm+r") -> ConfigDict:
    """The recipe with the given variant of the model."""
    config = default_config()
    model = config.model
    model.architecture = "gpt2"
    model.num_layers = 12
    model.num_heads = 12
    model.embed_dim = 768
    model.attention_bias = "qk"
    model.mlp_bias = False
    model.embedding_dropout = 0.1
    return apply_recipe(config, variant)
