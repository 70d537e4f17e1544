"""The section `model` of the configuration, and what follows from it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from nfllm.config.checks import ConfigError, at_least, between, check_types, positive

Architecture = Literal["gpt2", "gpt_neox"]
Normalization = Literal["layernorm", "none", "rmsnorm", "dyt", "derf"]
AttentionImplementation = Literal["auto", "explicit", "blocks", "xla", "cudnn"]
Activation = Literal[
    "gelu",
    "gelu_tanh",
    "relu",
    "leaky_relu",
    "learnable_leaky_relu",
    "silu",
    "relu_squared",
    "helu",
    "identity",
    "half_identity",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture."""

    architecture: Architecture
    num_layers: int
    num_heads: int
    embed_dim: int
    mlp_dim: int | None
    context_length: int
    normalization: Normalization
    final_normalization: Normalization
    qk_normalization: Normalization
    attention_implementation: AttentionImplementation = "explicit"
    norm_epsilon: float
    activation: Activation
    negative_slope: float | None
    slope_sharing: Literal["layer", "model", "untied_global"] | None
    helu_margin: float | None
    attention_bias: Literal["none", "qk", "all"]
    mlp_bias: bool
    tie_embeddings: bool | None
    rotary_fraction: float | None
    rotary_base: float | None
    embedding_dropout: float
    attention_dropout: float
    residual_dropout: float
    init_std: float
    init_std_scaling: Literal["none", "width"]
    scan_layers: bool | None
    remat: bool

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.embed_dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Width of the hidden layer of the MLP."""
        return 4 * self.embed_dim if self.mlp_dim is None else self.mlp_dim

    @property
    def ties_embeddings(self) -> bool:
        """Whether the output head is the token embedding."""
        return self.architecture == "gpt2" if self.tie_embeddings is None else self.tie_embeddings

    @property
    def slope(self) -> float:
        """Slope of the activation for negative inputs, or its start value where it is learned."""
        return 0.01 if self.negative_slope is None else self.negative_slope

    @property
    def margin(self) -> float:
        """HeLU's a: its gradient is 1 where x > -a."""
        return 0.05 if self.helu_margin is None else self.helu_margin

    @property
    def rotary_dim(self) -> int:
        """Number of leading features of each head that are rotated; 0 for learned positions."""
        if self.architecture == "gpt2":
            return 0
        fraction = 0.25 if self.rotary_fraction is None else self.rotary_fraction
        return int(self.head_dim * fraction)

    @property
    def block_init_std(self) -> float:
        """Standard deviation of the block matrices; `width` keeps 0.02 at width 768."""
        scale = (768 / self.embed_dim) ** 0.5 if self.init_std_scaling == "width" else 1.0
        return self.init_std * scale

    def __post_init__(self) -> None:
        check_types(self, "model")
        for key in ("num_layers", "num_heads", "embed_dim"):
            at_least(self, "model", key, 1)
        at_least(self, "model", "context_length", 2)  # a token, and the next
        if self.mlp_dim is not None:
            at_least(self, "model", "mlp_dim", 1)
        for key in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            between(self, "model", key, 0.0, 1.0)
        positive(self, "model", "norm_epsilon")
        positive(self, "model", "init_std")
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"model.num_heads={self.num_heads} does not divide model.embed_dim="
                f"{self.embed_dim}; choose a divisor of {self.embed_dim}"
            )
        self._check_attention_implementation()
        self._check_activation()
        self._check_positions()

    def _check_attention_implementation(self) -> None:
        chosen = self.attention_implementation
        if chosen not in ("auto", "explicit") and self.attention_dropout:
            raise ConfigError(
                f"model.attention_implementation={chosen!r} has no dropout, but "
                f"model.attention_dropout={self.attention_dropout}; use 'auto' or 'explicit'"
            )
        if chosen == "cudnn" and (self.head_dim % 8 or self.head_dim > 256):
            raise ConfigError(
                "model.attention_implementation='cudnn' needs a head width that is a multiple of 8 "
                f"and at most 256, but model.embed_dim={self.embed_dim} over model.num_heads="
                f"{self.num_heads} gives {self.head_dim}; use 'auto', or change the heads"
            )

    def _check_activation(self) -> None:
        if self.negative_slope is not None and self.activation not in (
            "leaky_relu",
            "learnable_leaky_relu",
        ):
            raise ConfigError(
                f"model.negative_slope={self.negative_slope} has no effect on model.activation="
                f"{self.activation!r}; set model.activation to 'leaky_relu' or "
                "'learnable_leaky_relu', or leave the slope unset"
            )
        if self.slope_sharing is not None and self.activation != "learnable_leaky_relu":
            raise ConfigError(
                f"model.slope_sharing={self.slope_sharing!r} has no effect on model.activation="
                f"{self.activation!r}; set model.activation to 'learnable_leaky_relu', or leave it "
                "unset"
            )
        if self.helu_margin is not None:
            if self.activation != "helu":
                raise ConfigError(
                    f"model.helu_margin={self.helu_margin} has no effect on model.activation="
                    f"{self.activation!r}; set model.activation to 'helu', or leave it unset"
                )
            positive(self, "model", "helu_margin")

    def _check_positions(self) -> None:
        if self.architecture == "gpt2":
            for key in ("rotary_fraction", "rotary_base"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        f"model.{key}={getattr(self, key)} has no effect on model.architecture="
                        "'gpt2', whose positions are learned; use 'gpt_neox', or leave it unset"
                    )
            return
        if self.rotary_fraction is not None:
            between(self, "model", "rotary_fraction", 0.0, 1.0, closed=True)
        if self.rotary_base is not None:
            positive(self, "model", "rotary_base")
        if self.rotary_dim % 2 or self.rotary_dim == 0:
            raise ConfigError(
                f"model.rotary_fraction gives a rotary width of {self.rotary_dim} of head width "
                f"{self.head_dim}; rotation works on pairs, so choose a fraction that makes it "
                "even and at least 2"
            )
