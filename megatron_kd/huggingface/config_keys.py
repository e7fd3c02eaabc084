"""The keys of a `config.json` that are not read here: those without effect on the computation, and those refused.

`architecture` lists the keys that it reads. Any other key is either known to change nothing, or has a value that turns
it off, or is refused: what a file says about its model is never left out in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

# Names, versions, token ids, defaults of `generate` and of training: none of them enters a forward pass.
_NO_EFFECT = """
    model_type transformers_version torch_dtype dtype use_cache initializer_range pretraining_tp finetuning_task
    tokenizer_class prefix use_bfloat16 tf_legacy_loss torchscript return_dict return_dict_in_generate is_decoder
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id id2label label2id num_labels problem_type task_specific_params
    output_attentions output_hidden_states output_scores remove_invalid_values gradient_checkpointing
    do_sample temperature top_k top_p typical_p min_p max_length min_length max_new_tokens num_beams num_beam_groups
    early_stopping length_penalty diversity_penalty repetition_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens exponential_decay_length_penalty
    num_return_sequences max_sequence_length model_max_length seq_length original_max_position_embeddings
    attn_implementation use_flash_attention use_flash_attn use_flash_attention_2 unsloth_fixed unsloth_version
    router_aux_loss_coef output_router_logits norm_topk_prob transformers.js_config neftune_noise_alpha
    tensor_parallel_degree tie_encoder_decoder is_llama_config
"""
# Of other families: they change what a model computes unless they are off.
_NOT_BUILT = """
    attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar attention_multiplier scale_depth clip_qkv
    num_experts num_local_experts n_routed_experts num_experts_per_tok moe_intermediate_size attention_chunk_size
    no_rope_layers no_rope_layer_interval use_qk_norm qk_layernorm use_parallel_residual parallel_attn alibi use_mrope
    rope_interleaved rope_interleave kv_lora_rank q_lora_rank attn_temperature_tuning is_encoder_decoder
    add_cross_attention pruned_heads quantization compression_config
"""
# Also of other families, with the one value that is built.
_AS_BUILT = {
    "embedding_multiplier": 1, "residual_multiplier": 1, "logits_scaling": 1, "logit_scale": 1, "lm_head_multiplier": 1,
    "scale_emb": 1, "rotary_pct": 1, "activation": "swiglu", "is_causal": True,
}  # fmt: skip
_OWN_CODE = ("AutoModel", "AutoModelForCausalLM")


def unread_keys(values: dict[str, Any], read: Collection[str]) -> Iterator[str]:
    """Why keys cannot be left out of a model.

    Args:
        values: of a `config.json`.
        read: the keys that are read.
    """
    no_effect, known = {*read, *_NO_EFFECT.split()}, {*_NOT_BUILT.split(), *_AS_BUILT}
    for key, value in values.items():
        if key in no_effect or key.startswith("_") or _is_as_built(key, value):
            continue
        if key == "auto_map":
            yield from _own_code(value)
        elif key in known:
            yield f"{key}={value!r} changes what the model computes, and is not supported"
        else:
            yield (
                f"{key}={value!r} in config.json is an unknown key; if the model computes the same without it, delete "
                "it there"
            )


def _is_as_built(key: str, value: Any) -> bool:
    if key in _AS_BUILT:
        return value is None or value == _AS_BUILT[key]
    return value is None or value is False or value in (0, "", [], {})


def _own_code(auto_map: Any) -> Iterator[str]:
    """The modelling code that comes with a model. Code of its configuration or tokenizer alone is not needed."""
    if not isinstance(auto_map, dict):
        yield f"auto_map={auto_map!r} must be an object; copy config.json again"
        return
    for name in _OWN_CODE:
        if name in auto_map:
            yield f"auto_map: the model has code of its own ({auto_map[name]}), which is not run; it is not supported"
            return
