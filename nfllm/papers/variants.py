"""The models that the paper compares, by the paper's names.

SM softmax attention, LN LayerNorm before attention and MLP, G GELU, R ReLU; a part that is not in
the name is not in the model. All keep the final LayerNorm, as the released code does.
"""

from typing import Any

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
    # What the released code calls global is also one slope for each layer; a single slope, as the
    # name suggests, is model.slope_sharing=model.
    "learnable_global": {
        "normalization": "none",
        "activation": "learnable_leaky_relu",
        "negative_slope": 0.01,
        "slope_sharing": "untied_global",
    },
}

_LINEAR = {"normalization": "none", "activation": "identity", "mlp_scaling": "learned"}

AERO_VARIANTS: dict[str, dict[str, Any]] = {
    "sm+scffn": _LINEAR,
    "sm+scfuffn": {**_LINEAR, "mlp": "fused"},
    "sm(t)+scfuffn": {**_LINEAR, "mlp": "fused", "softmax_temperature": "head_position"},
}
"""The softmax-only networks of arXiv 2410.13060 and 2501.03489, as keys of `model`.

Sc learned scalars around the MLP, Fu its matrices fused into one, (t) learned temperatures.
"""
