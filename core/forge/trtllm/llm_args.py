"""LLM(), the entrance of TensorRT-LLM's PyTorch path: its arguments' names by version, and a recipe in them. Pure.

Facts from TensorRT-LLM's sources (llmapi/llm_args.py of 0.19, 0.21, 1.0, 1.1 and 1.2, and the lists of LLM()'s parameters that
its tests/unittest/api_stability keeps) and from NVIDIA's llmapi model for Triton.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import msgspec

from forge.schema.values import ConvertTable, Recipe, Scalar, Toolchain
from forge.trtllm.commands import older

MOST_TOKENS = 8192
"""LLM()'s own max_num_tokens; a longer prompt would be refused although max_input_len lets it in."""
EAGLE_LEN, TARGET_LEN = 3, 4
"""Tokens guessed ahead where the recipe does not say: a chain here, where TensorRT-LLM's engines guess a tree."""

SPECULATION = {"eagle": ("Eagle", EAGLE_LEN), "draft-target": ("DraftTarget", TARGET_LEN)}
"""Variants that the PyTorch path has -> LLM()'s word for them and how far they guess."""

SET_BY_FORGE = {
    "model": "source",
    "tokenizer": "source",
    "backend": "",
    "dtype": "convert.dtype",
    "tensor_parallel_size": "convert.tp",
    "pipeline_parallel_size": "convert.pp",
    "max_batch_size": "build.max_batch_size",
    "max_input_len": "build.max_input_len",
    "max_seq_len": "build.max_seq_len",
    "max_num_tokens": "build.max_num_tokens",
    "max_beam_width": "build.max_beam_width",
    "kv_cache_config.free_gpu_memory_fraction": "serve.kv_cache_free_gpu_mem_fraction",
    "kv_cache_config.enable_block_reuse": "serve.enable_kv_cache_reuse",
    "triton_config": "[serve]",
}
"""Arguments that the recipe has keys of its own for -> those keys."""

_ALWAYS = (
    *("attn_backend", "cache_transceiver_config", "context_parallel_size", "cp_config", "disable_overlap_scheduler"),
    *("allreduce_strategy", "enable_attention_dp", "enable_chunked_prefill", "enable_iter_perf_stats", "enable_iter_req_stats"),
    *("enable_layerwise_nvtx_marker", "enable_lora", "enable_min_latency", "enable_mixed_sampler", "enable_trtllm_sampler"),
    *("garbage_collection_gen0_threshold", "gather_generation_logits", "gpus_per_node", "guided_decoding_backend"),
    *("iter_stats_max_iterations", "kv_cache_config", "load_format", "lora_config", "moe_cluster_parallel_size"),
    *("moe_expert_parallel_size", "moe_tensor_parallel_size", "num_postprocess_workers", "peft_cache_config"),
    *("postprocess_tokenizer_dir", "print_iter_log", "reasoning_parser", "request_stats_max_iterations", "revision"),
    *("scheduler_config", "skip_tokenizer_init", "speculative_config", "stream_interval", "tokenizer_mode"),
    *("tokenizer_revision", "torch_compile_config", "trust_remote_code", "decoding_config"),
)
_BEFORE_1_0 = (
    *("auto_parallel", "auto_parallel_world_size", "autotuner_enabled", "batching_type", "calib_config"),
    *("cuda_graph_batch_sizes", "cuda_graph_max_batch_size", "cuda_graph_padding_enabled", "embedding_parallel_mode"),
    *("enable_prompt_adapter", "enable_tqdm", "extended_runtime_perf_knob_config", "kv_cache_dtype", "max_cpu_loras"),
    *("max_lora_rank", "max_loras", "max_prompt_adapter_token", "mixed_sampler", "moe_backend", "moe_load_balancer"),
    *("moe_max_num_tokens", "normalize_log_probs", "pytorch_backend_config", "quant_config", "use_cuda_graph", "workspace"),
)
_SINCE_1_0 = (
    *("attention_dp_config", "batch_wait_max_tokens_ratio", "batch_wait_timeout_iters", "batch_wait_timeout_ms"),
    *("checkpoint_format", "cuda_graph_config", "custom_tokenizer", "disable_flashinfer_sampling", "dwdp_config"),
    *("enable_autotuner", "enable_energy_metrics", "enable_lm_head_tp_in_adp", "enable_resource_governor", "encode_only"),
    *("env_overrides", "fail_fast_on_attention_window_too_large", "force_dynamic_quantization", "kv_connector_config"),
    *("layer_wise_benchmarks_config", "max_stats_len", "mm_encoder_only", "model_kwargs", "moe_config", "mx_config"),
    *("nvfp4_gemm_config", "orchestrator_type", "otlp_traces_endpoint", "perf_metrics_max_requests", "pp_partition"),
    *("prometheus_metrics_config", "ray_placement_config", "ray_worker_extension_cls", "ray_worker_nsight_options"),
    *("reorder_policy_config", "return_perf_metrics", "sampler_force_async_worker", "sampler_type", "sleep_config"),
    *("sparse_attention_config", "telemetry_config", "use_cute_dsl_bf16_bmm", "use_cute_dsl_bf16_gemm"),
    *("use_cute_dsl_blockscaling_bmm", "use_cute_dsl_blockscaling_mm", "video_pruning_rate"),
)
OTHERS = {**dict.fromkeys(_BEFORE_1_0, "before"), **dict.fromkeys(_SINCE_1_0, "since")}
"""Arguments that not every version has -> on which side of 1.0 it has them."""
RENAMED = {
    "autotuner_enabled": "enable_autotuner",
    "cuda_graph_batch_sizes": '"cuda_graph_config.batch_sizes"',
    "cuda_graph_max_batch_size": '"cuda_graph_config.max_batch_size"',
    "cuda_graph_padding_enabled": '"cuda_graph_config.enable_padding"',
    "kv_cache_dtype": '"kv_cache_config.dtype"',
    "moe_backend": '"moe_config.backend"',
    "moe_load_balancer": '"moe_config.load_balancer"',
    "moe_max_num_tokens": '"moe_config.max_num_tokens"',
    "pytorch_backend_config": "what stands in it, each as an argument of its own",
    "use_cuda_graph": "cuda_graph_config, which is on by itself",
}
"""Arguments of before 1.0 -> what they are called since."""


@dataclass(frozen=True, slots=True)
class Assets:
    """Where LLM() finds what forge laid beside it, inside the container; ``draft`` is empty where there is none."""

    model: str
    draft: str = ""
    lora: Mapping[str, object] | None = None
    """lora_config, where there are adapters; each request names the folder of its own."""


def known(toolchain: Toolchain) -> frozenset[str]:
    """What LLM() of this image takes beside what forge sets; of every version where the image's is not known."""
    if not toolchain.trtllm:
        return frozenset((*_ALWAYS, *_BEFORE_1_0, *_SINCE_1_0))
    return frozenset((*_ALWAYS, *(_BEFORE_1_0 if older(toolchain, "1.0") else _SINCE_1_0)))


def stated(recipe: Recipe, toolchain: Toolchain, assets: Assets) -> dict[str, object]:
    """LLM()'s arguments as model.yaml states them. ValueError where a ``build.args`` cannot stand where it should."""
    build, convert = recipe.build, recipe.convert
    arguments: dict[str, object] = {
        "model": assets.model,
        "tokenizer": assets.model,
        "backend": "pytorch",
        "dtype": convert.dtype,
        "tensor_parallel_size": convert.tp,
        "pipeline_parallel_size": convert.pp,
        "max_batch_size": build.max_batch_size,
        "max_input_len": build.max_input_len,
        "max_seq_len": build.max_seq_len,
        "max_beam_width": build.max_beam_width,
    }
    if build.max_num_tokens or build.max_input_len > MOST_TOKENS:
        arguments["max_num_tokens"] = build.max_num_tokens or build.max_input_len
    arguments["kv_cache_config"] = {
        "free_gpu_memory_fraction": recipe.serve.fraction,
        "enable_block_reuse": recipe.serve.enable_kv_cache_reuse,
    }
    if assets.lora:
        arguments["lora_config"] = dict(assets.lora)
    if speculation := _speculation(recipe, toolchain, assets):
        arguments["speculative_config"] = speculation
    for path, value in {**_cache_type(convert, toolchain), **recipe.build.args}.items():
        _put(arguments, path, read(value))
    return arguments


def read(value: Scalar) -> object:
    """A value of ``build.args``: text that begins with a bracket is a list or table, in JSON. ValueError where it is none."""
    if not isinstance(value, str) or not value.startswith(("[", "{")):
        return value
    try:
        return msgspec.json.decode(value, type=list[object] | dict[str, object])
    except msgspec.DecodeError as error:
        raise ValueError(f"is no JSON: {error}") from error


def write(arguments: Mapping[str, object]) -> str:
    """The text of model.yaml. JSON, which every reader of YAML reads: forge needs no library to write YAML then."""
    return msgspec.json.format(msgspec.json.encode(_plain(arguments)), indent=2).decode() + "\n"


def _plain(value: object) -> object:
    """A float as YAML 1.1 reads one: PyYAML takes 1e-05 for text, and 1.0e-05 for a number."""
    if isinstance(value, float):
        mantissa, mark, exponent = repr(value).partition("e")
        point = ".0" if mark and "." not in mantissa else ""
        return msgspec.Raw(f"{mantissa}{point}{mark}{exponent}".encode())
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in cast("Mapping[str, object]", value).items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in cast("list[object]", value)]
    return value


def _cache_type(convert: ConvertTable, toolchain: Toolchain) -> dict[str, Scalar]:
    """Where LLM() is told in which type it keeps the cache; the place moved twice."""
    if convert.quantization != "fp8_kv":
        return {}
    if older(toolchain, "0.20"):
        return {"pytorch_backend_config.kv_cache_dtype": "fp8"}
    return {"kv_cache_dtype" if older(toolchain, "1.0") else "kv_cache_config.dtype": "fp8"}


def _speculation(recipe: Recipe, toolchain: Toolchain, assets: Assets) -> dict[str, object]:
    if recipe.variant not in SPECULATION:
        return {}
    kind, length = SPECULATION[recipe.variant]
    if kind == "DraftTarget" and not older(toolchain, "1.2"):
        kind = "Draft_Target"  # from_dict's own table took no underscore; since 1.2 the class's name for itself counts
    return {
        "decoding_type": kind,
        "max_draft_len": recipe.speculation.max_draft_len or length,
        _weights(toolchain): assets.draft,
    }


def _weights(toolchain: Toolchain) -> str:
    """What speculative_config calls the draft's folder. 1.2 calls it speculative_model, and still reads the former name."""
    if older(toolchain, "0.20"):
        return "pytorch_eagle_weights_path"
    return "pytorch_weights_path" if older(toolchain, "1.0") else "speculative_model_dir"


def _put(arguments: dict[str, object], path: str, value: object) -> None:
    """Set an argument, an inner one by its dotted path."""
    *tables, name = path.split(".")
    place = arguments
    for table in tables:
        inner = place.setdefault(table, dict[str, object]())
        if not isinstance(inner, dict):
            raise ValueError(f"{table} is set to a value already, and can hold no {name}")  # noqa: TRY004 - a recipe's mistake
        place = cast("dict[str, object]", inner)
    place[name] = value
