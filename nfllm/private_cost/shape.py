"""The sizes and parts of a decoder on which the cost of private inference depends."""

from __future__ import annotations

import dataclasses
from typing import Literal

from nfllm.config import Activation, ConfigError, ModelConfig, Normalization
from nfllm.config.checks import check_types
from nfllm.config.names import AttentionTransform


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Sizes and parts of a decoder.

    Parts not listed cost nothing: biases are additions, and the scalars of a scaled MLP (alpha,
    beta of arXiv 2501.03489) fold into the matrices of a network without normalization. So do gains
    of branches and heads, an identity beside a matrix, and whatever norm a matrix is used with.

    Attributes:
      num_layers: L.
      num_heads: H.
      num_kv_heads: G, heads of keys and values; None: H.
      embed_dim: D.
      head_dim: K.
      vocab_size: V.
      mlp_dim: F; without effect if `mlp` is `fused`.
      mlp: `two_layer`: activation(x W_in) W_out; `gated`: (activation(x W_gate) * x W_in) W_out;
        `fused`: one D x D matrix, without activation.
      num_mlp_layers: L', the number of layers with an MLP: L minus the pruned layers, which have no
        MLP and no normalization before it.
      activation: of the two-layer or gated MLP.
      normalization: before attention, and before the MLP if `mlp_normalization` is None.
      mlp_normalization: before the MLP, if different.
      final_normalization: before the output head.
      qk_normalization: of each head's queries and keys.
      attention_transform: of the logits, before the softmax.
      softmax_temperature: `none`; `head`: one per head, which folds into the query matrix;
        `head_position`: one per head and position, which scales the queries.
      value_projections: whether attention has value and output matrices; the simplified blocks of
        arXiv 2311.01906 have none.
      rotary_dim: leading features of each head that are rotated; 0: none.

    Raises:
      ConfigError: a size is out of range, a name is unknown, or a value is of a wrong type.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    embed_dim: int
    head_dim: int
    vocab_size: int
    mlp_dim: int
    num_mlp_layers: int
    mlp: Literal["two_layer", "gated", "fused"] = "two_layer"
    activation: Activation
    normalization: Normalization
    mlp_normalization: Normalization | None = None
    final_normalization: Normalization
    qk_normalization: Normalization = "none"
    attention_transform: AttentionTransform = "none"
    softmax_temperature: Literal["none", "head", "head_position"] = "none"
    value_projections: bool = True
    rotary_dim: int = 0

    def __post_init__(self) -> None:
        check_types(self, "shape")
        if self.rotary_dim < 0:
            raise ConfigError(f"rotary_dim={self.rotary_dim} must be at least 0")
        for key in ("num_layers", "num_heads", "embed_dim", "head_dim", "vocab_size", "mlp_dim"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}={getattr(self, key)} must be at least 1")
        if not 1 <= self.kv_heads <= self.num_heads or self.num_heads % self.kv_heads:
            raise ConfigError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; "
                "choose a divisor"
            )
        if not 0 <= self.num_mlp_layers <= self.num_layers:
            raise ConfigError(
                f"num_mlp_layers={self.num_mlp_layers} is outside 0 to num_layers="
                f"{self.num_layers}; prune no more layers than there are"
            )

    @classmethod
    def from_config(cls, model: ModelConfig, vocab_size: int) -> DecoderShape:
        """The shape of a configured model with a vocabulary of `vocab_size` tokens.

        Raises:
          ConfigError: the model has a part that is not counted here; the message names the key.
        """
        _check_counted(model)
        attention, mlp = (model.normalization_at(site) for site in ("attention", "mlp"))
        return cls(
            num_layers=model.num_layers,
            num_heads=model.num_heads,
            num_kv_heads=model.num_kv_heads,
            embed_dim=model.embed_dim,
            head_dim=model.head_dim,
            vocab_size=vocab_size,
            mlp_dim=model.mlp_width,
            num_mlp_layers=model.num_mlp_layers,
            mlp="two_layer" if model.mlp == "none" else model.mlp,
            activation=model.activation,
            normalization=attention,
            mlp_normalization=None if mlp == attention else mlp,
            final_normalization=model.final_normalization,
            qk_normalization=model.qk_normalization,
            attention_transform=model.attention_transform,
            softmax_temperature=model.softmax_temperature,
            value_projections=model.value_projection != "none",
            rotary_dim=model.rotary_dim,
        )

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def num_activations(self) -> int:
        """Activations per token, L' F; 0 if the MLP is linear."""
        is_linear = self.mlp == "fused" or self.activation in ("identity", "half_identity")
        return 0 if is_linear else self.num_mlp_layers * self.mlp_dim

    @property
    def num_attention_maps(self) -> int:
        """D x D matrices of attention in a layer: query, key, and usually value and output."""
        return 4 if self.value_projections else 2


NOT_COUNTED: dict[str, tuple[object, ...]] = {
    "mixer": ("softmax",),
    "norm_placement": ("pre",),
    "embedding_normalization": ("none",),
    "attention_output_normalization": ("none",),
    "mlp_hidden_normalization": ("none",),
    "mlp_skip_gains": (False,),
    "frozen_first_position": (False,),
    "attention_shaping": ("none",),
}
"""Keys with uncounted values, and their counted values."""


def _check_counted(model: ModelConfig) -> None:
    for key, counted in NOT_COUNTED.items():
        if (value := getattr(model, key)) not in counted:
            raise ConfigError(
                f"model.{key}={value!r} is not counted in the cost of private inference; only "
                f"{' or '.join(map(repr, counted))} is"
            )
    if model.value_projection == model.output_projection == "none":
        for key, only in (("head_gains", False), ("branch_scaling", "fixed")):
            if (value := getattr(model, key)) != only:
                raise ConfigError(
                    f"model.{key}={value!r} is not counted in the cost of private inference "
                    "without matrices of values and outputs, into which it would fold; only "
                    f"{only!r} is"
                )
    if (model.value_projection == "none") != (model.output_projection == "none"):
        raise ConfigError(
            f"model.value_projection={model.value_projection!r} with model.output_projection="
            f"{model.output_projection!r} is not counted in the cost of private inference; "
            "set both keys to 'none', or neither"
        )
