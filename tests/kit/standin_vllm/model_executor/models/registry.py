"""vllm.model_executor.models.registry in miniature: dictionaries of architectures, put together as vLLM has it."""

_TEXT_GENERATION_MODELS = {
    "GemmaForCausalLM": ("gemma", "GemmaForCausalLM"),
    "LlamaForCausalLM": ("llama", "LlamaForCausalLM"),
    "Qwen2ForCausalLM": ("qwen2", "Qwen2ForCausalLM"),
}
_TRANSFORMERS_BACKEND_MODELS = {
    "TransformersForCausalLM": ("transformers", "TransformersForCausalLM"),
}
_VLLM_MODELS = {**_TEXT_GENERATION_MODELS, **_TRANSFORMERS_BACKEND_MODELS}
_PREVIOUSLY_SUPPORTED_MODELS = {
    "MllamaForConditionalGeneration": "0.10.2",
}
_OOT_SUPPORTED_MODELS = {
    "BartForConditionalGeneration": "https://github.com/vllm-project/bart-plugin",
}


def supported(architectures: list[str]) -> None:
    """ValueError, in vLLM's words, where none of a checkpoint's architectures is served; one of transformers' own is."""
    for architecture in architectures:
        if architecture in _PREVIOUSLY_SUPPORTED_MODELS:
            version = _PREVIOUSLY_SUPPORTED_MODELS[architecture]
            raise ValueError(
                f"Model architecture {architecture} was supported in vLLM until v{version}, and is not supported anymore."
            )
        if architecture in _OOT_SUPPORTED_MODELS:
            raise ValueError(f"Model architecture {architecture} is not supported in-tree anymore.")
