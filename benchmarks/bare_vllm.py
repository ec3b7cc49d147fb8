"""vLLM by itself, for vllm_share.py: run by the Python of vLLM's environment, in a process that holds the engine.

Its first argument is the engine's arguments as JSON. It says {"ready": VERSION} and then reads a JSON request a line
(``prompts``, ``count``: tokens of each answer) and answers with a list for each prompt: seconds from the request's arrival to
its first token and to its last, and how many tokens came. What vLLM prints goes to standard error.
"""

import asyncio
import importlib
import json
import os
import sys
import time
from typing import Any


async def stream(engine: Any, prompt: str, params: Any, name: str, began: float) -> tuple[float, float, int]:
    """One answer, token by token."""
    first, tokens = 0.0, 0
    async for output in engine.generate(prompt, params, name):
        tokens += len(output.outputs[0].token_ids)
        first = first or time.perf_counter() - began
    return first, time.perf_counter() - began, tokens


async def serve(arguments: dict[str, object], said: int) -> None:
    vllm: Any = importlib.import_module("vllm")
    kinds: Any = importlib.import_module("vllm.sampling_params").RequestOutputKind
    engine = vllm.AsyncLLMEngine.from_engine_args(vllm.AsyncEngineArgs(**arguments))
    os.write(said, json.dumps({"ready": vllm.__version__}).encode() + b"\n")
    asked = 0
    while line := await asyncio.to_thread(sys.stdin.readline):
        wanted = json.loads(line)
        count, began = wanted["count"], time.perf_counter()
        answers: list[Any] = []
        for prompt in wanted["prompts"]:
            asked += 1
            words = {"temperature": 0, "max_tokens": count, "min_tokens": count, "output_kind": kinds.DELTA}
            answers.append(stream(engine, prompt, vllm.SamplingParams(**words), str(asked), began))
        os.write(said, json.dumps(await asyncio.gather(*answers)).encode() + b"\n")
    engine.shutdown()


if __name__ == "__main__":
    ours = os.dup(1)
    os.dup2(2, 1)  # vLLM's lines, and its children's
    asyncio.run(serve(json.loads(sys.argv[1]), ours))
