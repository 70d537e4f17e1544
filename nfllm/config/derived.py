"""Values that follow from the keys of the section `model`."""

from __future__ import annotations

from typing import Literal, get_args

from nfllm.config.names import (
    ACTIVATION_NAMES,
    MIXER_STATISTICS,
    NORMALIZATION_NAMES,
    strongest,
)

Site = Literal[
    "embedding",
    "attention",
    "query",
    "key",
    "attention_output",
    "attention_sum",
    "mlp",
    "mlp_hidden",
    "mlp_output",
    "mlp_sum",
    "final",
]
"""The places where a decoder can normalize: the input of layer 0; the input of a branch, its
output, and its sum with the stream; queries, keys, the MLP's hidden layer; the head's input."""

Branch = Literal["attention", "mlp"]

_PLACES = {
    "pre": ("",),
    "post": ("sum",),
    "peri": ("", "output"),
    "output": ("output",),
}
"""By `model.norm_placement`: where a branch has its normalization; `""` is the branch's input."""


class ModelShape:
    """Sizes and start values of a model; those whose keys are None are derived."""

    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int | None
    mixer: str
    embed_dim: int
    mlp_dim: int | None
    mlp: str
    mlp_pruned_layers: int
    softmax_temperature_init: float | None
    activation: str
    normalization: str
    norm_placement: str
    embedding_normalization: str
    attention_output_normalization: str
    mlp_hidden_normalization: str
    attention_normalization: str | None
    mlp_normalization: str | None
    qk_normalization: str
    normalization_groups: int | None
    final_normalization: str
    attention_branch_scale: float
    mlp_branch_scale: float
    attention_skip: float
    mlp_skip: float
    dyt_alpha_attention: float | None
    dyt_alpha_mlp: float | None
    dyt_alpha_final: float | None
    negative_slope: float | None
    helu_margin: float | None
    tie_embeddings: bool | None
    rotary_fraction: float | None
    rotary_base: float | None
    init_std: float
    init_std_scaling: str
    residual_init: str
    attention_shaping: str
    query_init_std: float | None

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.embed_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def groups_heads(self) -> bool:
        """Whether several query heads share one head of keys and values."""
        return self.kv_heads != self.num_heads

    @property
    def evonorm_groups(self) -> int:
        """Number of groups of the features of an EvoNorm."""
        return self.normalization_groups or 1

    @property
    def has_attention_maps(self) -> bool:
        """Whether rows of probabilities mix tokens, so that attention entropy is defined."""
        return self.mixer == "softmax"

    @property
    def mlp_width(self) -> int:
        """Width of the hidden layer of the MLP."""
        return 4 * self.embed_dim if self.mlp_dim is None else self.mlp_dim

    @property
    def has_hidden_layers(self) -> bool:
        """Whether the MLPs have a hidden layer, with an activation."""
        return self.mlp in ("two_layer", "gated")

    @property
    def num_mlp_layers(self) -> int:
        """Number of layers with an MLP, which are the first ones."""
        return 0 if self.mlp == "none" else self.num_layers - self.mlp_pruned_layers

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branches of the first block."""
        return ("attention", "mlp") if self.num_mlp_layers else ("attention",)

    @property
    def first_temperature(self) -> float:
        """Start value of the learned temperatures of the softmax."""
        return 1.0 if self.softmax_temperature_init is None else self.softmax_temperature_init

    def normalization_at(self, site: Site) -> str:
        """Name of the normalization at a site."""
        own: dict[str, str] = {
            "embedding": self.embedding_normalization,
            "query": self.qk_normalization,
            "key": self.qk_normalization,
            "mlp_hidden": self.mlp_hidden_normalization,
            "final": self.final_normalization,
        }
        if site in own:
            return own[site]
        if site.partition("_")[2] in _PLACES[self.norm_placement]:
            return self.normalization_of("mlp" if site.startswith("mlp") else "attention")
        return self.attention_output_normalization if site == "attention_output" else "none"

    def normalization_of(self, branch: Branch) -> str:
        """Name of the normalization of a branch; `norm_placement` says where it is."""
        own = self.mlp_normalization if branch == "mlp" else self.attention_normalization
        return self.normalization if own is None else own

    def branch_scale(self, branch: Branch) -> float:
        """Factor of a branch's output in its residual sum, or the start value if it is learned."""
        return self.attention_branch_scale if branch == "attention" else self.mlp_branch_scale

    def skip(self, branch: Branch) -> float:
        """Factor of the stream in its sum with a branch."""
        return self.attention_skip if branch == "attention" else self.mlp_skip

    def alpha_at(self, site: Site) -> float:
        """Start value of alpha of a point function at a site; all sites of a branch share it."""
        own = {
            "attention": self.dyt_alpha_attention,
            "mlp": self.dyt_alpha_mlp,
            "final": self.dyt_alpha_final,
        }.get(site.partition("_")[0])
        return 0.5 if own is None else own

    def width_at(self, site: Site) -> int:
        """Number of features of a normalization at a site."""
        if site == "mlp_hidden":
            return self.mlp_width
        return self.head_dim if site in ("query", "key") else self.embed_dim

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the model, including those with normalization `none`."""
        sites: tuple[Site, ...] = get_args(Site)
        return tuple(s for s in sites if self.num_mlp_layers or not s.startswith("mlp"))

    @property
    def statistics(self) -> str:
        """Whether the model is norm-free, frozen or normalised, as its parts declare.

        This is the strongest class among the parts of the blocks. A final normalization of a
        stronger class is named too: `norm-free, final normalised`.
        """
        found = {s: NORMALIZATION_NAMES[self.normalization_at(s)].statistics for s in self.sites}
        final = found.pop("final")
        has_activation = self.num_mlp_layers and self.mlp != "fused"
        activation = [ACTIVATION_NAMES[self.activation].statistics] if has_activation else []
        blocks = strongest([*found.values(), *activation, MIXER_STATISTICS[self.mixer]])
        return blocks if strongest([blocks, final]) == blocks else f"{blocks}, final {final}"

    @property
    def ties_embeddings(self) -> bool:
        """Whether the output head is the token embedding."""
        return self.architecture == "gpt2" if self.tie_embeddings is None else self.tie_embeddings

    @property
    def slope(self) -> float:
        """Slope of the activation for negative inputs, or its start value if it is learned."""
        return 0.01 if self.negative_slope is None else self.negative_slope

    @property
    def margin(self) -> float:
        """HeLU's a: its gradient is 1 where x > -a."""
        return 0.05 if self.helu_margin is None else self.helu_margin

    @property
    def rotary_share(self) -> float:
        """Share of each head's features that rotary positions rotate."""
        if self.rotary_fraction is not None:
            return self.rotary_fraction
        return 1.0 if self.architecture == "llama" else 0.25

    @property
    def rotary_wavelength_base(self) -> float:
        """Base of the progression of wavelengths of rotary positions."""
        return 10_000.0 if self.rotary_base is None else self.rotary_base

    @property
    def rotary_dim(self) -> int:
        """Number of leading features of each head that are rotated; 0 for learned positions."""
        return 0 if self.architecture == "gpt2" else int(self.head_dim * self.rotary_share)

    @property
    def block_init_std(self) -> float:
        """Standard deviation of the block matrices at the start; see `init_std_scaling`."""
        scale = (768 / self.embed_dim) ** 0.5 if self.init_std_scaling == "width" else 1.0
        return self.init_std * scale

    @property
    def residual_init_std(self) -> float:
        """Standard deviation at the start of the matrices that write to the residual stream."""
        depth = 2 * self.num_layers if self.residual_init == "depth" else 1
        return self.block_init_std / depth**0.5

    @property
    def first_query_std(self) -> float:
        """Standard deviation of the query matrices at the start."""
        if self.query_init_std is not None:
            return self.query_init_std
        return 0.0 if self.attention_shaping == "shaped" else self.block_init_std
