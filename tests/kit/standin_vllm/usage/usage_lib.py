"""vllm.usage.usage_lib, as far as it is used."""

from enum import StrEnum


class UsageContext(StrEnum):
    ENGINE_CONTEXT = "ENGINE_CONTEXT"
    OPENAI_API_SERVER = "OPENAI_API_SERVER"
