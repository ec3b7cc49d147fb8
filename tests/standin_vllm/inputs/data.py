"""vllm.inputs.data, as far as it is used; later releases have it elsewhere."""

from typing import TypedDict


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]
