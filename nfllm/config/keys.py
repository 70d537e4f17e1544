"""Every key there is, once: its type, its default, its unit and its meaning.

    python train.py --config.SECTION.KEY=VALUE

Files in `configs/` are small deltas on these defaults: a small norm-free ReLU decoder on Python
source, offline, on a CPU, in minutes. A key whose default is None is derived; its comment says how.
A new key is declared here alone; its default is written `added(DEFAULT)`, since runs are still read
that do not have it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from nfllm.config.derived import ModelShape
from nfllm.config.earlier import added
from nfllm.config.limits import (
    check_checkpoint,
    check_data,
    check_evaluation,
    check_objective,
    check_optimizer,
    check_parallel,
    check_removal,
    check_telemetry,
    check_training,
)
from nfllm.config.model_limits import check_model
from nfllm.config.names import Activation, AttentionTransform, Normalization

Architecture = Literal["gpt2", "gpt_neox", "llama"]
AttentionImplementation = Literal["auto", "explicit", "blocks", "xla", "cudnn"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelShape):
    """The architecture."""

    # gpt2: learned positions, sequential residual. gpt_neox: rotary positions, parallel residual.
    # llama: rotary positions, sequential residual; Llama itself has normalization rmsnorm too, and
    # mlp gated with activation silu
    architecture: Architecture = "gpt2"
    num_layers: int = 6
    num_heads: int = 4
    # Of keys and values, each shared by a group of heads. None: num_heads
    num_kv_heads: int | None = added(None)
    embed_dim: int = 64
    mlp_dim: int | None = None  # width of the MLP; None: 4 * embed_dim
    context_length: int = 128  # tokens; also the length of the position table
    # Before attention and before the MLP: layernorm, none, rmsnorm, evonorm_s0 (2004.02967, by
    # token), or f(alpha x): dyt (2503.10622), derf, isru, arctan, hardtanh, expsign; or
    # frozen_layernorm (2507.02559, nfllm/model/frozen_norm.py)
    normalization: Normalization = "none"
    # Before attention alone, and before the MLP alone. None: normalization
    attention_normalization: Normalization | None = added(None)
    mlp_normalization: Normalization | None = added(None)
    final_normalization: Normalization = "layernorm"  # the same names: before the output head
    qk_normalization: Normalization = "none"  # the same names: of each head's queries and keys
    norm_epsilon: float = 1e-5  # added to the variance
    # Of frozen_layernorm: the first position, whose stream is often far larger, has a deviation of
    # its own
    frozen_first_position: bool = added(False)
    # Of frozen_layernorm: share of the old value in the moving average that measures the deviation
    # until a norm is removed
    frozen_momentum: float = added(0.9)
    # Where normalization N is: pre: x + f(N(x)); post: N(x + f(x)); peri: x + N'(f(N(x)))
    # (2502.02732); output: x + N'(f(x))
    norm_placement: Literal["pre", "post", "peri", "output"] = added("pre")
    embedding_normalization: Normalization = added("none")  # the same names: of what enters layer 0
    # The four parts of NormFormer (2110.09456): norms of attention's output before the sum and of
    # the MLP's hidden layer after the activation; gains that start at 1, one a head of what it
    # mixed, and one a feature of what passes by the MLP
    attention_output_normalization: Normalization = added("none")
    mlp_hidden_normalization: Normalization = added("none")
    head_gains: bool = added(False)
    mlp_skip_gains: bool = added(False)
    # A branch's sum is skip * x + branch_scale * f(x). OP block (2405.19279): scales of 0.2
    attention_branch_scale: float = added(1.0)
    mlp_branch_scale: float = added(1.0)
    # learned: a scalar each per layer that starts at the branch scale (from 0: ReZero, 2003.04887)
    branch_scaling: Literal["fixed", "learned"] = added("fixed")
    attention_skip: float = added(1.0)
    mlp_skip: float = added(1.0)
    # Matrices of the MLP, used with a gain and unit length for each input (weight_input) or each
    # output (weight_output), with unit length alone (hypersphere), or divided by their largest
    # singular value (spectral): nfllm/model/weight_norm.py
    mlp_weight_norm: Literal["none", "weight_input", "weight_output", "hypersphere", "spectral"] = (
        added("none")
    )
    # sigma: every matrix of the blocks as gain * W / its largest singular value (2303.06296)
    weight_reparametrization: Literal["none", "sigma"] = added("none")
    # Of evonorm_s0, as a normalization and as the activation: groups of the features. None: 1
    normalization_groups: int | None = added(None)
    # Where the alpha of the point functions of a branch, and of the final one, starts. None: 0.5,
    # as for queries and keys
    dyt_alpha_attention: float | None = added(None)
    dyt_alpha_mlp: float | None = added(None)
    dyt_alpha_final: float | None = added(None)
    # Whether point functions add a learned scalar to alpha x. None: all but dyt, as published
    dyt_shift: bool | None = added(None)
    # learned: a scalar that starts at sqrt(embed_dim) times the sum of token and position embedding
    embedding_scale: Literal["none", "learned"] = added("none")
    # gelu (exact erf), gelu_tanh, gelu_puma (2307.12533: polynomials), relu, leaky_relu,
    # learnable_leaky_relu, silu, relu_squared, helu (2411.10573), identity (the MLP becomes
    # linear), half_identity (x/2, as GELU near zero), evonorm_s0 (2004.02967: it normalizes a
    # token's hidden layer too)
    activation: Activation = "relu"
    # Slope for x < 0 of leaky_relu; its start value for learnable_leaky_relu. None: 0.01
    negative_slope: float | None = None
    # Of learnable_leaky_relu. layer: one slope a layer; model: one slope for the whole model;
    # untied_global: one a layer, under the name that the paper's code calls "global".
    # None: layer
    slope_sharing: Literal["layer", "model", "untied_global"] | None = None
    helu_margin: float | None = None  # of helu: gradient 1 where x > -margin. None: 0.05
    # two_layer: activation(x W_in) W_out. gated: (activation(x W_gate) * x W_in) W_out (SwiGLU,
    # GeGLU, ReGLU by the activation). fused: one D x D matrix, to which a two-layer MLP with
    # activation identity comes. none: attention alone
    mlp: Literal["two_layer", "gated", "fused", "none"] = added("two_layer")
    mlp_pruned_layers: int = added(0)  # so many of the deepest layers have no MLP (2410.13060)
    # learned: x * residual_gain + mlp(x) / mlp_alpha, a scalar each per layer that starts at 1
    # (scaled FFN, 2501.03489)
    mlp_scaling: Literal["none", "learned"] = added("none")
    # Learned divisor of the attention logits (2501.03489). head: one a head; head_position: one a
    # head and query position
    softmax_temperature: Literal["none", "head", "head_position"] = added("none")
    # Its start value. None: 1. The paper's own are 0.01 (CodeParrot) and 0.1 (Languini)
    softmax_temperature_init: float | None = added(None)
    # shaped: values are mixed by softmax_gain * softmax + identity_gain * identity - uniform_gain *
    # uniform, three learned gains a head that start at 1 (2311.01906). Recorded probabilities and
    # entropies are those of the softmax
    attention_shaping: Literal["none", "shaped"] = added("none")
    # dense: a matrix. none: no matrix. identity_residual: skip_gain * x + residual_gain * W x,
    # learned, from 1 and 0. SAS (2311.01906) has neither matrix, but for its first value and last
    # output matrix; here all layers are alike
    value_projection: Literal["dense", "identity_residual", "none"] = added("dense")
    output_projection: Literal["dense", "identity_residual", "none"] = added("dense")
    # Standard deviation of the query matrices at the start. None: 0 with shaped attention, which
    # makes its first map the identity, else that of the other matrices
    query_init_std: float | None = added(None)
    # What mixes tokens. softmax: attention. regla: gated linear attention, with a norm and without
    # a softmax (2502.01578, nfllm/model/regla.py): it has no attention entropy
    mixer: Literal["softmax", "regla"] = added("softmax")
    # A function of each attention logit before the softmax: none, or one that was registered
    attention_transform: AttentionTransform = added("none")
    # none; qk: query and key (the paper); all: also value and output
    attention_bias: Literal["none", "qk", "all"] = "none"
    mlp_bias: bool = False
    tie_embeddings: bool | None = None  # output head = token embedding. None: gpt2 only
    head_bias: bool = added(False)  # of the output head; a folded final norm leaves one
    # Share of each head that is rotated. None: 0.25 of gpt_neox, 1 of llama
    rotary_fraction: float | None = None
    rotary_base: float | None = None  # None: 10000
    embedding_dropout: float = 0.0  # probability; on token + position embedding
    attention_dropout: float = 0.0  # probability; on attention probabilities
    residual_dropout: float = 0.0  # probability; on what each branch adds to the residual stream
    init_std: float = 0.02  # standard deviation of embeddings and matrices at the start
    # width: block matrices start at init_std * sqrt(768 / embed_dim); none: at init_std
    init_std_scaling: Literal["none", "width"] = "width"
    # Of attention's and the MLP's output matrix. depth: 1 / sqrt(2 * num_layers) of that (GPT-2)
    residual_init: Literal["plain", "depth"] = added("plain")
    # explicit: whole [T, T] maps. blocks: the same for some queries at a time, with the keys they
    # see. xla, cudnn: jax.nn.dot_product_attention, whose float16 does not overflow as that of the
    # paper's code; cudnn, for 16-bit types on an NVIDIA GPU, keeps no [T, T] map. Analysis and
    # probes always take explicit. auto: what measured fastest (README, Speed)
    attention_implementation: AttentionImplementation = added("auto", before="explicit")
    # Compile one block and loop over it: fast compilation for many layers. None: what is fastest
    # here (nfllm/model/tuning.py)
    scan_layers: bool | None = None
    remat: bool = False  # recompute block activations in the backward pass: less memory, more time

    def __post_init__(self) -> None:
        check_model(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The corpus, its tokens, its windows and its validation split."""

    # python_stdlib: the running interpreter's own library. python_source: directories of .py files.
    # text_files: jsonl, txt or parquet, also .gz .xz .zst. codeparrot: from the Hugging Face hub.
    # Anything else: the name of a TFDS dataset already prepared under data_dir.
    dataset: str = "python_stdlib"
    split: str = "train"  # TFDS split that is read, or a slice of it: train[:10%]
    sources: str = ""  # of python_source and text_files: paths or globs, separated by commas
    data_dir: str | None = None  # prepared corpora and tokens. None: ~/.cache/nfllm
    text_field: str | None = None  # field that holds the text. None: text, else content
    # Of text_files: characters that separate documents within a text, e.g. <|endoftext|>. None: a
    # record is a document, and a .txt file is cut into blocks of 16 KiB
    document_separator: str | None = added(None)
    # A record that cannot be read: error, or skip (counted)
    malformed: Literal["error", "skip"] = "error"
    tokenizer: str = "bpe"  # bpe: trained on the corpus; bytes; or the path of a tokenizer.json
    vocab_size: int = 2048  # tokens, end-of-text included; of bpe only
    # packed: documents joined by end-of-text and cut; documents: each one cut, its tail dropped
    window: Literal["packed", "documents"] = "packed"
    # hash: of a document's text; slice: the last documents; field: whole values of
    # validation_field; separate: the documents of validation_source
    validation_split: Literal["hash", "slice", "field", "separate"] = "hash"
    validation_fraction: float = 0.05  # share of documents (hash, slice) or field values held out
    validation_field: str | None = None  # of split=field, e.g. package
    validation_values: str = ""  # of split=field: held-out values, by commas; empty: by hash
    # Of split=separate: a split of the dataset, e.g. validation (of codeparrot: a split of its
    # validation repository); for local files their paths, as in sources
    validation_source: str | None = None
    mask_end_of_text: bool = False  # no loss where the target is end-of-text (the paper)

    def __post_init__(self) -> None:
        check_data(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Terms added to the loss. The entropy regularizer: nfllm/training/entropy_penalty.py."""

    # Weight of the entropy regularizer (2501.03489: 1e-5, Languini 5e-5); 0: none
    entropy_weight: float = added(0.0)
    # Of ln T: what a head's entropy may be off its threshold at no cost
    entropy_margin: float = added(0.2)
    # Each head's threshold, or its start value where it is learned, as a share of ln T
    entropy_threshold: float = added(0.5)
    entropy_threshold_trainable: bool = added(True)
    # layer: each layer has its own thresholds; first: all use one row of H, as the released code
    entropy_threshold_sharing: Literal["layer", "first"] = added("layer")
    # mean: of a head over queries, then the penalty (the paper's Algorithm 1). row_sum: the penalty
    # of each query, summed (the released code; T times the weight)
    entropy_reduction: Literal["mean", "row_sum"] = added("mean")

    def __post_init__(self) -> None:
        check_objective(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, its schedule, its decay and its clipping."""

    # adamw: decoupled decay, as in optax. hf_adamw: as transformers.AdamW (the paper): epsilon is
    # added to the uncorrected second moment, and decay acts on the updated parameter. muon: the
    # matrices of the blocks by Muon with updates of AdamW's size (2502.16982), the rest by adamw
    variant: Literal["adamw", "hf_adamw", "muon"] = "adamw"
    muon_momentum: float = added(0.95)
    muon_per_head: bool = added(False)  # each head's matrices are orthogonalized on their own
    learning_rate: float = 1e-3  # at the end of warmup
    final_learning_rate: float = 1e-5  # where the decay would be after the last step
    schedule: Literal["polynomial", "cosine", "constant"] = "cosine"  # after warmup
    schedule_power: float = 1.0  # of polynomial
    warmup_steps: int | None = None  # None: warmup_fraction of training.steps, rounded up
    warmup_fraction: float = 0.05
    warmup_from_zero: bool = False  # the first step has learning rate 0 (the paper)
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # of matrices and embeddings; never of biases and normalizations
    decay_slopes: bool = False  # also of learned slopes (the paper)
    clip_norm: float = 1.0  # of the global gradient norm; 0: no clipping
    # QK-clip (2507.20534, whose limit is 100): where a head's largest logit in a step exceeds the
    # limit, its queries and keys are scaled back to it. None: none
    qk_clip: float | None = added(None)
    # token: every target counts alike; micro_batch: mean of the micro-batches' means (the paper)
    accumulation_weighting: Literal["token", "micro_batch"] = "token"

    def __post_init__(self) -> None:
        check_optimizer(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, batch, seed, precision, and what happens to a step that is not finite."""

    steps: int = 3500  # optimizer steps
    batch_size: int = 8  # sequences per optimizer step, over all devices and micro-batches
    # Micro-batches per optimizer step, computed one after the other. None: 1, but on a CPU as many
    # as keep one at 256 tokens or less per device, which is faster there
    gradient_accumulation: int | None = None
    seed: int = 0  # of parameters, data order and dropout
    # RUN or RUN@STEP: a run, or an imported checkpoint, whose parameters are the first ones here
    # (nfllm/trainer/warm_start.py). A run that is resumed does not read it again
    init_from: str | None = added(None)
    # Of init_from: parameters, by commas, that start anew here or are left out there, such as
    # blocks.mlp or token_embedding; layers: those that only one of the two has
    init_skip: str = added("")
    # A published recipe that the keys should follow, such as derf_gpt2 or op_block
    # (nfllm/config/recipes.py). It sets no key: the run names those that differ
    recipe: str | None = added(None)
    # Of matrix products; parameters, softmax and loss stay float32. auto: float32 on a CPU,
    # bfloat16 elsewhere. float16 scales the loss dynamically
    dtype: DType = "auto"
    # Positions, over all sequences of a micro-batch, whose logits exist at once, say 8192, which
    # takes less memory. None: the best choice here (nfllm/model/tuning.py)
    loss_tile_rows: int | None = added(None)
    # A loss or gradient that is not finite. stop; skip: leave out the update; continue: apply it
    non_finite: Literal["stop", "skip", "continue"] = "stop"
    max_skipped_steps: int = 10  # of skip: stop after so many in a row
    log_every: int = 25  # steps between lines of metrics.jsonl
    # Directory of compiled programs. None: ~/.cache/nfllm/compiled; empty: none
    compilation_cache: str | None = None

    def __post_init__(self) -> None:
        check_training(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemovalConfig:
    """When each norm of a model with frozen_layernorm stops measuring its input (2507.02559)."""

    # Step before which each is a LayerNorm, and at which the first one is removed. None: all are
    # frozen from the start
    start: int | None = added(None)
    gap: int = added(2)  # steps from one removal to the next; a site may have its own: value:3
    # Sites, one after the other, layer by layer: mlp, query_key, value, final, first_position (its
    # own deviation becomes that of all)
    order: str = added("mlp,query_key,value,final")
    taper_steps: int = added(0)  # of each removal, by a cosine (2602.10408); 0: at once
    # Weight of the spread of the deviation of the last stream within a sequence; the paper: 0.1
    scale_weight: float = added(0.0)

    def __post_init__(self) -> None:
        check_removal(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How often and over how much the validation loss is measured."""

    every: int = 500  # steps; 0: only at the end
    batch_size: int = 32  # sequences, over all devices
    max_windows: int | None = None  # of the validation split. None: all of it

    def __post_init__(self) -> None:
        check_evaluation(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """How often the attention entropy is probed, and on how many sequences."""

    every: int = 100  # steps between probes of the attention entropy; 0: never
    probe_windows: int = 16  # sequences of the fixed probe batch, from the validation split
    # Who gets each line of metrics.jsonl too while it trains, comma separated: tensorboard, wandb
    loggers: str = added("")
    # Each head's entropy and largest logit over the training batch itself, computed within every
    # step, and written with its loss every training.log_every steps
    entropy_every_step: bool = added(False)
    # The L2 norm of each layer's gradient, before clipping, written with the loss
    gradient_norms: bool = added(False)

    def __post_init__(self) -> None:
        check_telemetry(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often checkpoints are written and how many are kept."""

    every: int = 500  # steps; 0: only at the end and when interrupted
    keep: int = 2  # newest checkpoints kept
    keep_every: int | None = None  # also keep every multiple of so many steps

    def __post_init__(self) -> None:
        check_checkpoint(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the step is put on devices."""

    # pmap: data parallel. fsdp: parameters and optimizer state are sharded too
    strategy: Literal["pmap", "fsdp"] = "pmap"
    cpu_devices: int | None = None  # parts a CPU is split into. None: as fits the batch

    def __post_init__(self) -> None:
        check_parallel(self)
