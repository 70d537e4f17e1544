"""Attributes of transformers' configs that do not change the logits, by name.

Any other attribute is judged by the words in its name. Training scripts and hubs leave all kinds of
notes in a config.json, which transformers ignores. But an attribute named after a part of the
computation may mean that the model is not quite that of its `model_type`.
"""

from __future__ import annotations

import re

# Attributes of every transformers config, versions 2 to 5: origin, labels, how to run the model.
_COMMON = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _auto_class
    _commit_hash _experts_implementation _name _name_or_path _num_labels adapters architectures
    attn_implementation auto_map base_model_pp_plan base_model_tp_plan bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size custom_pipelines decoder_start_token_id
    dtype eos_token_id finetuning_task gradient_checkpointing id2label is_decoder
    is_encoder_decoder keys_to_ignore_at_inference label2id model_type name_or_path num_labels
    output_attentions output_hidden_states output_past pad_token_id pretraining_tp problem_type
    return_dict sep_token_id task_specific_params tf_legacy_loss tie_encoder_decoder
    tokenizer_class torch_dtype torchscript transformers_version unk_token_id use_bfloat16
    use_cache use_return_dict xla_device
"""
# Attributes of generation_config.json, which older versions kept in config.json.
_GENERATION = """
    assistant_confidence_threshold bad_words_ids begin_suppress_tokens cache_config
    cache_implementation diversity_penalty do_sample dola_layers early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_decoder_ids
    forced_eos_token_id generation_config guidance_scale is_assistant length_penalty low_memory
    max_length max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
    num_beams num_return_sequences output_logits output_scores penalty_alpha prefix
    prompt_lookup_num_tokens remove_invalid_values renormalize_logits repetition_penalty
    return_dict_in_generate return_legacy_cache sequence_bias stop_strings suppress_tokens
    temperature token_healing top_k top_p typical_p watermarking_config
"""
# Attributes of heads other than the language model's, and of fine-tuning libraries.
_OTHERS = """
    classifier_dropout summary_activation summary_first_dropout summary_hidden_size
    summary_last_dropout summary_proj_to_labels summary_type summary_use_proj unsloth_fixed
    unsloth_version
"""
NAMES = frozenset(f"{_COMMON} {_GENERATION} {_OTHERS}".split())

_OF_THE_COMPUTATION = re.compile(
    "act|activation|alibi|attention|attn|bias|causal|conv|decoder|dim|embd|embed|embedding|"
    "embeddings|encoder|epsilon|eps|expert|experts|ffn|gate|gated|glu|head|heads|hidden|inner|kv|"
    "layer|layers|layernorm|lora|mask|mlp|moe|multiplier|norm|parallel|position|positions|"
    "quantization|query|quantized|residual|rmsnorm|rope|rotary|scale|scaling|softcap|softcapping|"
    "softmax|sparse|tie|tied|vocab|width|window"
)


def may_change_logits(name: str, value: object) -> bool:
    """Whether an attribute is named after a part of the computation, and not None or False.

    Words are separated by underscores. Dropout changes only training.
    """
    words = name.lower().split("_")
    if value in (None, False) or {"dropout", "pdrop"} & set(words):
        return False
    return any(map(_OF_THE_COMPUTATION.fullmatch, words))
