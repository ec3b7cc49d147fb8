"""Parameters of config.pbtxt: those that nobody reads, and values that are not what they should be."""

import difflib
from collections.abc import Iterator

from forge.check.model import Kind, Repository, truth
from forge.check.rules.rule import Found

EVERYWHERE = frozenset({"FORCE_CPU_ONLY_INPUT_TENSORS", "EXECUTION_ENV_PATH", "TRITON_BATCH_STRATEGY_PATH"})
"""Read by Triton itself, or by its Python backend."""
NUMBERS = frozenset(
    {
        *("max_beam_width", "max_tokens_in_paged_kv_cache", "sink_token_length", "kv_cache_free_gpu_mem_fraction"),
        *("cross_kv_cache_fraction", "kv_cache_host_memory_bytes", "cancellation_check_period_ms", "stats_check_period_ms"),
        *("iter_stats_max_iterations", "request_stats_max_iterations", "recv_poll_period_ms", "num_nodes"),
        *("lora_cache_optimal_adapter_size", "lora_cache_max_adapter_size", "lora_cache_gpu_memory_fraction"),
        *("lora_cache_host_memory_bytes", "lookahead_window_size", "lookahead_ngram_size"),
        *("lookahead_verification_set_size", "gpu_weights_percent", "cuda_graph_cache_size"),
    }
)
ANSWERS = frozenset(
    {
        *("kv_cache_onboard_blocks", "enable_trt_overlap", "exclude_input_in_output", "enable_kv_cache_reuse"),
        *("normalize_log_probs", "enable_chunked_context", "multi_block_mode", "enable_context_fmha_fp32_acc"),
        *("cuda_graph_mode", "speculative_decoding_fast_logits"),
    }
)
"""true or false; any other text the backend takes for unset."""
WORDS = {
    "gpt_model_type": ("V1", "v1", "inflight_batching", "inflight_fused_batching"),
    "batch_scheduler_policy": ("max_utilization", "guaranteed_no_evict"),
    "decoding_mode": ("top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle"),
}
REFUSED = frozenset({"gpt_model_type"})
"""Words that the backend does not go on without: ``forge.check.rules.terms`` has them."""
_OTHERS = frozenset(
    {
        *("gpt_model_path", "encoder_model_path", "max_attention_window_size", "gpu_device_ids", "participant_ids"),
        *("lora_prefetch_dir", "executor_worker_path", "medusa_choices", "eagle_choices", "tokenizer_dir"),
        *("guided_decoding_backend", "xgrammar_tokenizer_info_path"),
    }
)
KNOWN = {
    Kind.ENGINE: NUMBERS | ANSWERS | frozenset(WORDS) | _OTHERS,
    Kind.PREPROCESSING: frozenset(
        {
            *("tokenizer_dir", "add_special_tokens", "multimodal_model_path", "visual_model_path", "gpt_model_path"),
            *("engine_dir", "max_num_images", "hf_model_path", "tokenizer_type"),
            *("max_input_len", "max_prompt_chars", "max_words", "max_word_chars"),
        }
    ),
    Kind.POSTPROCESSING: frozenset({"tokenizer_dir", "skip_special_tokens", "tokenizer_type"}),
    Kind.BLS: frozenset(
        {
            *("accumulate_tokens", "tensorrt_llm_model_name", "tensorrt_llm_draft_model_name", "multimodal_encoders_name"),
            *("tokenizer_dir", "skip_special_tokens", "preprocessing_model_name", "postprocessing_model_name"),
            "max_queued",
        }
    ),
}
"""Every key of NVIDIA's skeletons from 0.14 to 1.2, those that model_instance_state.cc reads besides, and forge's own."""


def parameter_unknown(repository: Repository) -> Iterator[Found]:
    for kind, keys in KNOWN.items():
        for model, config in repository.of(kind):
            for key in config.parameters:
                if key in keys | EVERYWHERE or any(key in text for text in model.sources.values()):
                    continue  # a hand-written model reads what it likes
                near = difflib.get_close_matches(key, sorted(keys), n=1, cutoff=0.6)
                hint = f'did you mean "{near[0]}"?' if near else "take it away: no version's skeleton has it"
                yield Found(model.file, f"nobody reads the parameter {key}", hint, needle=f'"{key}"')


def tokenizer_type(repository: Repository) -> Iterator[Found]:
    for kind in (Kind.PREPROCESSING, Kind.POSTPROCESSING):
        for model, config in repository.of(kind):
            code = model.sources.get(model.code, "")
            if "tokenizer_type" in config.parameters and "tokenizer_type" not in code:
                value = config.parameters["tokenizer_type"]
                yield Found(model.file, f"tokenizer_type is {value!r}, and nobody reads it", needle='"tokenizer_type"')


def parameter_value(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENGINE):
        for key in config.parameters.keys() - REFUSED:
            if (value := config.stated(key)) and (wrong := _wrong(key, value)):
                yield Found(model.file, f"{key} is {value!r}: {wrong}", needle=f'"{key}"')


def _wrong(key: str, value: str) -> str:
    if key in ANSWERS and truth(value) is None:
        return "neither true nor false, so it counts as unset"
    if key in WORDS and value not in WORDS[key]:
        return f"it can be {', '.join(WORDS[key])}"
    if key in NUMBERS:
        try:
            float(value)
        except ValueError:
            return "no number, so it counts as unset"
    return ""
