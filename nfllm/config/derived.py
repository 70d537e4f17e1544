"""What follows from the keys of the section `model`."""

from __future__ import annotations

from typing import Literal, get_args

from nfllm.config.names import (
    ACTIVATION_NAMES,
    NORMALIZATION_NAMES,
    strongest,
)

Site = Literal["attention", "mlp", "query", "key", "final"]
"""Where a decoder normalizes: before attention, before the MLP, queries, keys, before the head."""


class ModelShape:
    """Sizes and start values that the keys leave to be derived."""

    architecture: str
    num_layers: int
    num_heads: int
    embed_dim: int
    mlp_dim: int | None
    mlp: str
    mlp_pruned_layers: int
    softmax_temperature_init: float | None
    activation: str
    normalization: str
    attention_normalization: str | None
    mlp_normalization: str | None
    qk_normalization: str
    normalization_groups: int | None
    final_normalization: str
    dyt_alpha_attention: float | None
    dyt_alpha_mlp: float | None
    dyt_alpha_final: float | None
    negative_slope: float | None
    helu_margin: float | None
    tie_embeddings: bool | None
    rotary_fraction: float | None
    init_std: float
    init_std_scaling: str

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.embed_dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Width of the hidden layer of the MLP."""
        return 4 * self.embed_dim if self.mlp_dim is None else self.mlp_dim

    @property
    def num_mlp_layers(self) -> int:
        """Layers that have an MLP: the first ones."""
        return 0 if self.mlp == "none" else self.num_layers - self.mlp_pruned_layers

    @property
    def first_temperature(self) -> float:
        """Start value of the learned temperatures of the softmax."""
        return 1.0 if self.softmax_temperature_init is None else self.softmax_temperature_init

    def normalization_at(self, site: Site) -> str:
        """Name of the normalization at a site."""
        own = {
            "attention": self.attention_normalization,
            "mlp": self.mlp_normalization,
            "query": self.qk_normalization,
            "key": self.qk_normalization,
            "final": self.final_normalization,
        }[site]
        return self.normalization if own is None else own

    def alpha_at(self, site: Site) -> float:
        """Start of the alpha of a point function at a site."""
        own = {
            "attention": self.dyt_alpha_attention,
            "mlp": self.dyt_alpha_mlp,
            "final": self.dyt_alpha_final,
        }.get(site)
        return 0.5 if own is None else own

    def width_at(self, site: Site) -> int:
        """Features that a normalization at a site has."""
        return self.head_dim if site in ("query", "key") else self.embed_dim

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites at which the model has a normalization, `none` among them."""
        sites: tuple[Site, ...] = get_args(Site)
        return tuple(s for s in sites if self.num_mlp_layers or not s.startswith("mlp"))

    @property
    def statistics(self) -> str:
        """Whether the model is norm-free, frozen or normalised, as its parts declare.

        It is that of all parts of the blocks together; a final normalization that is more than that
        is named besides: `norm-free, final normalised`.
        """
        found = {s: NORMALIZATION_NAMES[self.normalization_at(s)].statistics for s in self.sites}
        final = found.pop("final")
        has_activation = self.num_mlp_layers and self.mlp != "fused"
        activation = [ACTIVATION_NAMES[self.activation].statistics] if has_activation else []
        blocks = strongest([*found.values(), *activation])
        return blocks if strongest([blocks, final]) == blocks else f"{blocks}, final {final}"

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
