"""vllm.utils, as far as it is used."""

import uuid


def random_uuid() -> str:
    return uuid.uuid4().hex
