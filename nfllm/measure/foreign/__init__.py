"""Measurements of models of other libraries.

Such a model is a function from token ids [B, T] to a dict of sites: arrays under names of fields of
`nfllm.Captured`, any subset of them:

    from nfllm import foreign

    def sites_of(tokens_BT):
        return {"attention_probs": my_model(tokens_BT).attentions}  # [L, B, H, T, S]

    results = foreign.analyze(sites_of, batches, ["head_entropy", "sink_score"])

`from_transformers`, `from_linen` and `from_nnx` make that function from models of these libraries.
"""

from nfllm.measure.foreign.flax import from_linen, from_nnx
from nfllm.measure.foreign.huggingface import LAYOUTS, Layout, from_transformers
from nfllm.measure.foreign.streaming import SitesOf, analyze

__all__ = [
    "LAYOUTS",
    "Layout",
    "SitesOf",
    "analyze",
    "from_linen",
    "from_nnx",
    "from_transformers",
]
