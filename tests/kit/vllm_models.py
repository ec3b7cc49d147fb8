"""Repositories with models of vLLM, as the plan lays them out."""

import json
from pathlib import Path

from forge.repository.config import render
from forge.repository.vllm import vllm_skeleton
from forge.schema.values import Names, Role


def lay(root: Path, name: str, *, gpus: object = "", **arguments: object) -> None:
    """One model of a repository, as the plan lays it out with its assets inside; ``arguments`` go into its model.json."""
    checkpoint = root / name / "_assets" / "model"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512}')
    for text in render(Names(name, (Role.VLLM,)), vllm_skeleton(gpus=str(gpus)), {Role.VLLM: {}}):
        (root / text.path).parent.mkdir(parents=True, exist_ok=True)
        (root / text.path).write_text(text.content)
    (root / name / "1").mkdir()
    stated = {"model": "./_assets/model", "max_model_len": 256, **arguments}
    (root / name / "1" / "model.json").write_text(json.dumps(stated))


NGRAM = {"method": "ngram", "num_speculative_tokens": 4}
PIPE = {"pipeline_parallel_size": 2}
LORA = {"enable_lora": True}
GRAPHS = {"cudagraph_capture_sizes": [1, 2]}
CLASHES: tuple[tuple[str, dict[str, object], dict[str, object]], ...] = (
    ("vllm-batch", {"max_num_seqs": 32, "max_num_batched_tokens": 31}, {"max_num_seqs": 32, "max_num_batched_tokens": 32}),
    (
        "vllm-batch",
        {"enable_chunked_prefill": False, "max_num_seqs": 4, "max_num_batched_tokens": 127},
        {"enable_chunked_prefill": False, "max_num_seqs": 4, "max_num_batched_tokens": 128},
    ),
    (
        "vllm-batch",
        {**LORA, "speculative_config": NGRAM, "max_num_seqs": 32, "max_num_batched_tokens": 159},
        {**LORA, "speculative_config": NGRAM, "max_num_seqs": 32, "max_num_batched_tokens": 160},
    ),
    ("vllm-batch", {"max_num_seqs": 2049}, {"max_num_seqs": 2048}),
    (
        "vllm-batch",
        {**LORA, "speculative_config": NGRAM, "max_num_seqs": 410},
        {"speculative_config": NGRAM, "max_num_seqs": 410},
    ),
    ("vllm-speculation", {"speculative_config": {"method": "ngram"}}, {"speculative_config": NGRAM}),
    (
        "vllm-speculation",
        {"speculative_config": {**NGRAM, "num_speculative_tokens": 0}},
        {"speculative_config": {**NGRAM, "num_speculative_tokens": 1}},
    ),
    (
        "vllm-speculation",
        {"speculative_config": {**NGRAM, "prompt_lookup_min": 5, "prompt_lookup_max": 4}},
        {"speculative_config": {**NGRAM, "prompt_lookup_min": 4, "prompt_lookup_max": 4}},
    ),
    (
        "vllm-speculation",
        {"speculative_config": {**NGRAM, "tensor_parallel_size": 1}},
        {"speculative_config": {**NGRAM, "draft_tensor_parallel_size": 1}},
    ),
    (
        "vllm-speculation",
        {"speculative_config": NGRAM, "async_scheduling": True},
        {"speculative_config": NGRAM, "async_scheduling": False},
    ),
    ("vllm-parallel", {"tensor_parallel_size": 2}, {"tensor_parallel_size": 3}),
    (
        "vllm-parallel",
        {**PIPE, "distributed_executor_backend": "uni"},
        {**PIPE, "distributed_executor_backend": "mp", "speculative_config": NGRAM},
    ),
    ("vllm-parallel", {"decode_context_parallel_size": 2}, {"decode_context_parallel_size": 1}),
    ("vllm-parallel", {"enable_eplb": True}, {"enable_eplb": False}),
    ("vllm-twice", {**GRAPHS, "compilation_config": GRAPHS}, {"compilation_config": GRAPHS}),
    (
        "vllm-twice",
        {"max_cudagraph_capture_size": 8, "compilation_config": {"max_cudagraph_capture_size": 8}},
        {"max_cudagraph_capture_size": 8},
    ),
    (
        "vllm-twice",
        {"attention_backend": "CPU_ATTN", "attention_config": {"backend": "CPU_ATTN"}},
        {"attention_backend": "CPU_ATTN", "attention_config": {"backend": "auto"}},
    ),
    ("vllm-value", {"gpu_memory_utilization": 1.01}, {"gpu_memory_utilization": 1.0}),
    ("vllm-value", {"gpu_memory_utilization": 0}, {"gpu_memory_utilization": 0.01}),
    ("vllm-value", {**LORA, "max_lora_rank": 24}, {"max_lora_rank": 24}),
    ("vllm-value", {**LORA, "max_cpu_loras": 2, "max_loras": 3}, {**LORA, "max_cpu_loras": 3, "max_loras": 3}),
)
"""The rule of ``forge check``, arguments that vLLM refuses for a model of 9 heads and 128 tokens, and some that it takes."""
