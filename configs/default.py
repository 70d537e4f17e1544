"""A small norm-free ReLU decoder on Python source: offline, on a CPU, in minutes.

    python train.py --config configs/default.py

Every key there is, with its unit. Other files in this folder are small deltas on this one, and
`--config.SECTION.KEY=VALUE` changes a single key. A key whose default is None is derived; its
comment says how.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Returns the complete default configuration."""
    config = ConfigDict()

    config.model = model = ConfigDict()
    # gpt2: learned positions, sequential residual. gpt_neox: rotary positions, parallel residual.
    model.architecture = "gpt2"
    model.num_layers = 6
    model.num_heads = 4
    model.embed_dim = 64
    model.mlp_dim = placeholder(int)  # width of the MLP; None: 4 * embed_dim
    model.context_length = 128  # tokens; also the length of the position table
    # layernorm, none, rmsnorm, dyt (2503.10622), derf: before attention and before the MLP
    model.normalization = "none"
    model.final_normalization = "layernorm"  # the same names: before the output head
    model.qk_normalization = "none"  # the same names: of each head's queries and keys
    model.norm_epsilon = 1e-5  # added to the variance
    # gelu (exact erf), gelu_tanh, relu, leaky_relu, learnable_leaky_relu, silu, relu_squared,
    # helu (2411.10573), identity (the MLP becomes linear), half_identity (x/2, as GELU near zero)
    model.activation = "relu"
    # Slope for x < 0 of leaky_relu; its start value for learnable_leaky_relu. None: 0.01
    model.negative_slope = placeholder(float)
    # Of learnable_leaky_relu. layer: one slope a layer; model: one slope for the whole model;
    # untied_global: one a layer, under the name that the paper's code calls "global".
    # None: layer
    model.slope_sharing = placeholder(str)
    model.helu_margin = placeholder(float)  # of helu: gradient 1 where x > -margin. None: 0.05
    model.attention_bias = "none"  # none; qk: query and key (the paper); all: also value and output
    model.mlp_bias = False
    model.tie_embeddings = placeholder(bool)  # output head = token embedding. None: gpt2 only
    model.rotary_fraction = placeholder(float)  # share of each head that is rotated. None: 0.25
    model.rotary_base = placeholder(float)  # None: 10000
    model.embedding_dropout = 0.0  # probability; on token + position embedding
    model.attention_dropout = 0.0  # probability; on attention probabilities
    model.residual_dropout = 0.0  # probability; on what each branch adds to the residual stream
    model.init_std = 0.02  # standard deviation of embeddings and matrices at the start
    # width: block matrices start at init_std * sqrt(768 / embed_dim); none: at init_std
    model.init_std_scaling = "width"
    # explicit: whole [T, T] maps. blocks: the same for some queries at a time, with the keys they
    # see. xla, cudnn: jax.nn.dot_product_attention, whose float16 does not overflow as that of the
    # paper's code; cudnn, for 16-bit types on an NVIDIA GPU, keeps no [T, T] map. Analysis and
    # probes always take explicit. auto: what measured fastest (README, Speed)
    model.attention_implementation = "auto"
    # Compile one block and loop over it: fast compilation for many layers. None: what is fastest
    # here (nfllm/model/tuning.py)
    model.scan_layers = placeholder(bool)
    model.remat = False  # recompute block activations in the backward pass: less memory, more time

    config.data = data = ConfigDict()
    # python_stdlib: the running interpreter's own library. python_source: directories of .py files.
    # text_files: jsonl, txt or parquet, also .gz .xz .zst. codeparrot: from the Hugging Face hub.
    # Anything else: the name of a TFDS dataset already prepared under data_dir.
    data.dataset = "python_stdlib"
    data.split = "train"  # TFDS split that is read, or a slice of it: train[:10%]
    data.sources = ""  # of python_source and text_files: paths or globs, separated by commas
    data.data_dir = placeholder(str)  # prepared corpora and tokens. None: ~/.cache/nfllm
    data.text_field = placeholder(str)  # field that holds the text. None: text, else content
    # Of text_files: characters that separate documents within a text, e.g. <|endoftext|>. None: a
    # record is a document, and a .txt file is cut into blocks of 16 KiB
    data.document_separator = placeholder(str)
    data.malformed = "error"  # a record that cannot be read: error, or skip (counted)
    data.tokenizer = "bpe"  # bpe: trained on the corpus; bytes; or the path of a tokenizer.json
    data.vocab_size = 2048  # tokens, end-of-text included; of bpe only
    # packed: documents joined by end-of-text and cut; documents: each one cut, its tail dropped
    data.window = "packed"
    # hash: of a document's text; slice: the last documents; field: whole values of
    # validation_field; separate: the documents of validation_source
    data.validation_split = "hash"
    data.validation_fraction = 0.05  # share of documents (hash, slice) or field values held out
    data.validation_field = placeholder(str)  # of split=field, e.g. package
    data.validation_values = ""  # of split=field: held-out values, by commas; empty: by hash
    # Of split=separate: a split of the dataset, e.g. validation (of codeparrot: a split of its
    # validation repository); for local files their paths, as in sources
    data.validation_source = placeholder(str)
    data.mask_end_of_text = False  # no loss where the target is end-of-text (the paper)

    config.optimizer = optimizer = ConfigDict()
    # adamw: decoupled decay, as in optax. hf_adamw: as transformers.AdamW (the paper): epsilon is
    # added to the uncorrected second moment, and decay acts on the updated parameter
    optimizer.variant = "adamw"
    optimizer.learning_rate = 1e-3  # at the end of warmup
    optimizer.final_learning_rate = 1e-5  # where the decay would be after the last step
    optimizer.schedule = "cosine"  # after warmup: polynomial, cosine, constant
    optimizer.schedule_power = 1.0  # of polynomial
    optimizer.warmup_steps = placeholder(int)  # None: warmup_fraction of training.steps, rounded up
    optimizer.warmup_fraction = 0.05
    optimizer.warmup_from_zero = False  # the first step has learning rate 0 (the paper)
    optimizer.beta1 = 0.9
    optimizer.beta2 = 0.95
    optimizer.epsilon = 1e-8
    optimizer.weight_decay = 0.1  # of matrices and embeddings; never of biases and normalizations
    optimizer.decay_slopes = False  # also of learned slopes (the paper)
    optimizer.clip_norm = 1.0  # of the global gradient norm; 0: no clipping
    # token: every target counts alike; micro_batch: mean of the micro-batches' means (the paper)
    optimizer.accumulation_weighting = "token"

    config.training = training = ConfigDict()
    training.steps = 3500  # optimizer steps
    training.batch_size = 8  # sequences per optimizer step, over all devices and micro-batches
    # Micro-batches per optimizer step, computed one after the other. None: 1, but on a CPU as many
    # as keep one at 256 tokens or less per device, which is faster there
    training.gradient_accumulation = placeholder(int)
    training.seed = 0  # of parameters, data order and dropout
    # Of matrix products; parameters, softmax and loss stay float32. auto: float32 on a CPU,
    # bfloat16 elsewhere. float16 scales the loss dynamically
    training.dtype = "auto"
    # Positions, over all sequences of a micro-batch, whose logits exist at once, say 8192, which
    # takes less memory. None: what is best here (nfllm/model/tuning.py)
    training.loss_tile_rows = placeholder(int)
    # A loss or gradient that is not finite. stop; skip: leave out the update; continue: apply it
    training.non_finite = "stop"
    training.max_skipped_steps = 10  # of skip: stop after so many in a row
    training.log_every = 25  # steps between lines of metrics.jsonl
    # Directory of compiled programs. None: ~/.cache/nfllm/compiled; empty: none
    training.compilation_cache = placeholder(str)

    config.evaluation = evaluation = ConfigDict()
    evaluation.every = 500  # steps; 0: only at the end
    evaluation.batch_size = 32  # sequences, over all devices
    evaluation.max_windows = placeholder(int)  # of the validation split. None: all of it

    config.telemetry = telemetry = ConfigDict()
    telemetry.every = 100  # steps between probes of the attention entropy; 0: never
    telemetry.probe_windows = 16  # sequences of the fixed probe batch, from the validation split
    # Each head's entropy over the training batch itself, computed within every step, and written
    # with its loss every training.log_every steps
    telemetry.entropy_every_step = False

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 500  # steps; 0: only at the end and when interrupted
    checkpoint.keep = 2  # newest checkpoints kept
    checkpoint.keep_every = placeholder(int)  # also keep every multiple of so many steps

    config.parallel = parallel = ConfigDict()
    # pmap: data parallel. fsdp: parameters and optimizer state are sharded too
    parallel.strategy = "pmap"
    parallel.cpu_devices = placeholder(int)  # parts a CPU is split into. None: as fits the batch

    return config.lock()
