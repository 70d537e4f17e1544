"""Every key of a config, once: its type, its default, its unit and its meaning.

    python train.py --config.SECTION.KEY=VALUE

Files in `configs/` are small deltas on these defaults: a small norm-free ReLU decoder on Python
source, offline, on a CPU, in minutes. A key whose default is None is derived; its comment says how.
A new key is declared only here, and its default is written `added(DEFAULT)`, so that earlier runs
without the key can still be read.
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
    # Number of key and value heads, each shared by a group of query heads. None: num_heads
    num_kv_heads: int | None = added(None)
    embed_dim: int = 64
    mlp_dim: int | None = None  # width of the MLP; None: 4 * embed_dim
    context_length: int = 128  # tokens; also the length of the position table
    # Before attention and before the MLP: layernorm, none, rmsnorm, evonorm_s0 (2004.02967, by
    # token), or f(alpha x): dyt (2503.10622), derf, isru, arctan, hardtanh, expsign; or
    # frozen_layernorm (2507.02559, nfllm/model/frozen_norm.py)
    normalization: Normalization = "none"
    # Before attention only, and before the MLP only. None: the value of normalization
    attention_normalization: Normalization | None = added(None)
    mlp_normalization: Normalization | None = added(None)
    final_normalization: Normalization = "layernorm"  # the same names: before the output head
    qk_normalization: Normalization = "none"  # the same names: of each head's queries and keys
    norm_epsilon: float = 1e-5  # added to the variance
    # Of frozen_layernorm: position 0, whose stream is often far larger, has its own deviation
    frozen_first_position: bool = added(False)
    # Of frozen_layernorm: share of the old value in the moving average that measures the deviation
    # until a norm is removed
    frozen_momentum: float = added(0.9)
    # Where normalization N is: pre: x + f(N(x)); post: N(x + f(x)); peri: x + N'(f(N(x)))
    # (2502.02732); output: x + N'(f(x))
    norm_placement: Literal["pre", "post", "peri", "output"] = added("pre")
    embedding_normalization: Normalization = added("none")  # the same names: before layer 0
    # The four parts of NormFormer (2110.09456): norms of attention's output before the sum and of
    # the MLP's hidden layer after the activation; gains that start at 1, one for the output of each
    # head, and one for each feature of the stream that skips the MLP
    attention_output_normalization: Normalization = added("none")
    mlp_hidden_normalization: Normalization = added("none")
    head_gains: bool = added(False)
    mlp_skip_gains: bool = added(False)
    # A branch's sum is skip * x + branch_scale * f(x). OP block (2405.19279): scales of 0.2
    attention_branch_scale: float = added(1.0)
    mlp_branch_scale: float = added(1.0)
    # learned: a scalar per branch and layer that starts at the branch scale (ReZero, 2003.04887: 0)
    branch_scaling: Literal["fixed", "learned"] = added("fixed")
    attention_skip: float = added(1.0)
    mlp_skip: float = added(1.0)
    # Normalization of the MLP's matrices: unit length and a gain for each input (weight_input) or
    # each output (weight_output), only unit length (hypersphere), or division by the largest
    # singular value (spectral): nfllm/model/weight_norm.py
    mlp_weight_norm: Literal["none", "weight_input", "weight_output", "hypersphere", "spectral"] = (
        added("none")
    )
    # sigma: every matrix of the blocks as gain * W / its largest singular value (2303.06296)
    weight_reparametrization: Literal["none", "sigma"] = added("none")
    # Of evonorm_s0, as normalization and as activation: number of groups of features. None: 1
    normalization_groups: int | None = added(None)
    # Start value of alpha of the point functions of each branch, and of the final one. None: 0.5,
    # as for queries and keys
    dyt_alpha_attention: float | None = added(None)
    dyt_alpha_mlp: float | None = added(None)
    dyt_alpha_final: float | None = added(None)
    # Whether point functions add a learned scalar to alpha x. None: all but dyt, as published
    dyt_shift: bool | None = added(None)
    # learned: token plus position embedding times a scalar that starts at sqrt(embed_dim)
    embedding_scale: Literal["none", "learned"] = added("none")
    # gelu (exact erf), gelu_tanh, gelu_puma (2307.12533: polynomials), relu, leaky_relu,
    # learnable_leaky_relu, silu, relu_squared, helu (2411.10573), identity (the MLP becomes
    # linear), half_identity (x/2, as GELU near zero), evonorm_s0 (2004.02967: it normalizes a
    # token's hidden layer too)
    activation: Activation = "relu"
    # Slope for x < 0 of leaky_relu; its start value for learnable_leaky_relu. None: 0.01
    negative_slope: float | None = None
    # Of learnable_leaky_relu. layer: one slope per layer; model: one slope for the whole model;
    # untied_global: one per layer, which the paper's code calls "global". None: layer
    slope_sharing: Literal["layer", "model", "untied_global"] | None = None
    helu_margin: float | None = None  # of helu: gradient 1 where x > -margin. None: 0.05
    # two_layer: activation(x W_in) W_out. gated: (activation(x W_gate) * x W_in) W_out (SwiGLU,
    # GeGLU, ReGLU by the activation). fused: one D x D matrix, the product of those of a
    # two-layer MLP with activation identity. none: only attention
    mlp: Literal["two_layer", "gated", "fused", "none"] = added("two_layer")
    mlp_pruned_layers: int = added(0)  # number of deepest layers without an MLP (2410.13060)
    # learned: x * residual_gain + mlp(x) / mlp_alpha, two scalars per layer that start at 1 (scaled
    # FFN, 2501.03489)
    mlp_scaling: Literal["none", "learned"] = added("none")
    # Learned divisor of the attention logits (2501.03489). head: one per head; head_position:
    # one per head and query position
    softmax_temperature: Literal["none", "head", "head_position"] = added("none")
    # Its start value. None: 1. The paper uses 0.01 (CodeParrot) and 0.1 (Languini)
    softmax_temperature_init: float | None = added(None)
    # shaped: values are mixed by softmax_gain * softmax + identity_gain * identity - uniform_gain *
    # uniform, with three learned gains per head that start at 1 (2311.01906). Recorded
    # probabilities and entropies are those of the softmax
    attention_shaping: Literal["none", "shaped"] = added("none")
    # dense: a matrix. none: no matrix. identity_residual: skip_gain * x + residual_gain * W x,
    # with learned gains that start at 1 and 0. SAS (2311.01906) has neither matrix, except the
    # value matrix of layer 0 and the output matrix of the last layer; here all layers are alike
    value_projection: Literal["dense", "identity_residual", "none"] = added("dense")
    output_projection: Literal["dense", "identity_residual", "none"] = added("dense")
    # Standard deviation of the query matrices at the start. None: 0 with shaped attention, which
    # makes its first map the identity, else that of the other matrices
    query_init_std: float | None = added(None)
    # How tokens are mixed. softmax: attention. regla: gated linear attention, with a norm and
    # without a softmax (2502.01578, nfllm/model/regla.py): attention entropy is not defined
    mixer: Literal["softmax", "regla"] = added("softmax")
    # A function of each attention logit before the softmax: none, or a registered name
    attention_transform: AttentionTransform = added("none")
    # Biases. none; qk: of query and key (the paper); all: also of value and output
    attention_bias: Literal["none", "qk", "all"] = "none"
    mlp_bias: bool = False
    tie_embeddings: bool | None = None  # output head = token embedding. None: gpt2 only
    head_bias: bool = added(False)  # of the output head; folding a final norm adds it
    # Share of each head that is rotated. None: 0.25 for gpt_neox, 1 for llama
    rotary_fraction: float | None = None
    rotary_base: float | None = None  # None: 10000
    embedding_dropout: float = 0.0  # probability; on token + position embedding
    attention_dropout: float = 0.0  # probability; on attention probabilities
    residual_dropout: float = 0.0  # probability; on the output of each branch
    init_std: float = 0.02  # standard deviation of embeddings and matrices at the start
    # width: block matrices start at init_std * sqrt(768 / embed_dim); none: at init_std
    init_std_scaling: Literal["none", "width"] = "width"
    # Start of the output matrices of attention and MLP. plain: as other matrices; depth: that times
    # 1 / sqrt(2 * num_layers) (GPT-2)
    residual_init: Literal["plain", "depth"] = added("plain")
    # explicit: whole [T, T] maps. blocks: the same for a block of queries at a time, with only the
    # keys that they see. xla, cudnn: jax.nn.dot_product_attention, which in float16 does not
    # overflow as the paper's code does; cudnn, for 16-bit types on an NVIDIA GPU, stores no [T, T]
    # map. Analysis and probes always use explicit. auto: the fastest as measured (README, Speed)
    attention_implementation: AttentionImplementation = added("auto", before="explicit")
    # Compile one block and loop over it: fast compilation for many layers. None: the faster way
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
    # Of python_source and text_files: paths or globs, separated by commas; {site-packages} is where
    # this interpreter's packages are installed
    sources: str = ""
    data_dir: str | None = None  # folder of prepared corpora and tokens. None: ~/.cache/nfllm
    text_field: str | None = None  # field that holds the text. None: text, else content
    # Of text_files: characters that separate documents within a text, e.g. <|endoftext|>. None: a
    # text is a document, and a .txt file is cut at line ends into blocks of 16 to 32 KiB
    document_separator: str | None = added(None)
    # A line or row that cannot be read: error, or skip (and count)
    malformed: Literal["error", "skip"] = "error"
    tokenizer: str = "bpe"  # bpe: trained on the corpus; bytes; or the path of a tokenizer.json
    vocab_size: int = 2048  # tokens, end-of-text included; of bpe only
    # packed: documents are joined by end-of-text, then cut into windows; documents: each document
    # is cut by itself, and its tail is dropped
    window: Literal["packed", "documents"] = "packed"
    # How held-out documents are chosen. hash: by a hash of the text; slice: the last ones; field:
    # by the value of validation_field; separate: those of validation_source
    validation_split: Literal["hash", "slice", "field", "separate"] = "hash"
    validation_fraction: float = 0.05  # share held out: of documents (hash, slice) or field values
    validation_field: str | None = None  # of validation_split=field, e.g. package
    validation_values: str = ""  # the same: held-out values, split by commas; empty: by hash
    # Of validation_split=separate: a split of the dataset, e.g. validation (for codeparrot a split
    # of its validation repository); for local files their paths, as in sources
    validation_source: str | None = None
    mask_end_of_text: bool = False  # no loss where the target is end-of-text (the paper)

    def __post_init__(self) -> None:
        check_data(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Terms added to the loss. The entropy regularizer: nfllm/training/entropy_penalty.py."""

    # Weight of the entropy regularizer (2501.03489: 1e-5, Languini 5e-5); 0: none
    entropy_weight: float = added(0.0)
    # Largest distance of a head's entropy from its threshold that costs nothing, as a share of ln T
    entropy_margin: float = added(0.2)
    # Each head's threshold, or its start value if it is learned, as a share of ln T
    entropy_threshold: float = added(0.5)
    entropy_threshold_trainable: bool = added(True)
    # layer: each layer has its own thresholds; first: all layers share H thresholds, as in the
    # released code
    entropy_threshold_sharing: Literal["layer", "first"] = added("layer")
    # mean: the penalty of a head's mean entropy over queries (the paper's Algorithm 1). row_sum:
    # the sum of the penalties of its queries (the released code; as T times the weight)
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
    muon_per_head: bool = added(False)  # orthogonalize each head's matrices by themselves
    learning_rate: float = 1e-3  # at the end of warmup
    final_learning_rate: float = 1e-5  # that the decay would reach after the last step
    schedule: Literal["polynomial", "cosine", "constant"] = "cosine"  # after warmup
    schedule_power: float = 1.0  # of polynomial
    warmup_steps: int | None = None  # None: warmup_fraction of training.steps, rounded up
    warmup_fraction: float = 0.05
    warmup_from_zero: bool = False  # the first step has learning rate 0 (the paper)
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # of matrices and embeddings; never of biases and normalizations
    decay_slopes: bool = False  # also decay learned slopes (the paper)
    clip_norm: float = 1.0  # of the global gradient norm; 0: no clipping
    # QK-clip (2507.20534, whose limit is 100): if a head's largest logit in a step exceeds the
    # limit, its query and key matrices are scaled down to meet it. None: no clipping
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
    # as keep a micro-batch at 256 tokens or fewer per device, which is faster there
    gradient_accumulation: int | None = None
    seed: int = 0  # of parameters, data order and dropout
    # RUN or RUN@STEP: a run, or an imported checkpoint, from whose parameters training starts
    # (nfllm/trainer/warm_start.py). A resumed run does not read them again
    init_from: str | None = added(None)
    # Parameters that are not taken from init_from, separated by commas, such as blocks.mlp or
    # token_embedding; layers: the layers that only one of the two models has
    init_skip: str = added("")
    # A published recipe that the keys should follow, such as derf_gpt2 or op_block
    # (nfllm/config/recipes.py). It sets no key: the run lists the keys that differ
    recipe: str | None = added(None)
    # Type of matrix products; parameters, softmax and loss stay float32. auto: float32 on a CPU,
    # bfloat16 elsewhere. float16 scales the loss dynamically
    dtype: DType = "auto"
    # Number of positions, over all sequences of a micro-batch, whose logits exist at once; fewer,
    # such as 8192, take less memory. None: the best choice here (nfllm/model/tuning.py)
    loss_tile_rows: int | None = added(None)
    # If a loss or gradient is not finite. stop; skip: leave out the update; continue: apply it
    non_finite: Literal["stop", "skip", "continue"] = "stop"
    max_skipped_steps: int = 10  # of skip: stop after more than this many in a row
    log_every: int = 25  # steps between lines of metrics.jsonl
    # Directory of compiled programs. None: ~/.cache/nfllm/compiled; empty: JAX's own setting
    compilation_cache: str | None = None

    def __post_init__(self) -> None:
        check_training(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemovalConfig:
    """When each norm of a model with frozen_layernorm stops measuring its input (2507.02559)."""

    # Step of the first removal; each norm is a LayerNorm until its removal. None: all are frozen
    # from the start
    start: int | None = added(None)
    gap: int = added(2)  # steps from one removal to the next; a site may have its own: value:3
    # Sites in order of removal, each layer by layer: mlp, query_key, value, final, first_position
    # (the first position then has the deviation of the others)
    order: str = added("mlp,query_key,value,final")
    taper_steps: int = added(0)  # length of each removal, by a cosine (2602.10408); 0: at once
    # Weight of the loss on the variance, within a sequence, of the last stream's deviation; the
    # paper: 0.1
    scale_weight: float = added(0.0)

    def __post_init__(self) -> None:
        check_removal(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How often, and on how many windows, the validation loss is measured."""

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
    # Loggers that also get each line of metrics.jsonl, separated by commas: tensorboard, wandb
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
    keep_every: int | None = None  # also keep those at multiples of this step

    def __post_init__(self) -> None:
        check_checkpoint(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a step is distributed over devices."""

    # pmap: data parallel. fsdp: parameters and optimizer state are sharded too
    strategy: Literal["pmap", "fsdp"] = "pmap"
    cpu_devices: int | None = None  # virtual devices of a CPU. None: as many as fit the batch

    def __post_init__(self) -> None:
        check_parallel(self)
