"""A Triton that answers at once, over KServe's gRPC: ``python tests/kit/instant_triton.py PORT`` serves one model.

It says numbered words. Each has the moments (of the machine's monotonic clock) when the request came and when the word went;
so many are said as ``max_tokens`` asks for, with so many milliseconds between two as ``seed`` says.
"""

import asyncio
import gc
import importlib
import json
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

FRONT = "tensorrt_llm_bls"
INPUTS = {
    "text_input": "BYTES",
    "seed": "UINT64",
    **dict.fromkeys(("max_tokens", "top_k", "beam_width"), "INT32"),
    **dict.fromkeys(("temperature", "top_p"), "FP32"),
    **dict.fromkeys(("stream", "return_num_input_tokens", "return_num_output_tokens"), "BOOL"),
}
WORD = "{:5d} {:.6f} {:.6f}\n"


def repository(place: Path) -> Path:
    """A folder that tells of the model as forge's manifests do, with a tokenizer that has a chat template."""
    from forge.schema.manifest import NAME, Manifest, PublishedModel, write
    from forge.schema.values import Role, RuntimeKind
    from skeleton_kit import lay

    model = PublishedModel(name="instant", entry="e" * 64, runtime=RuntimeKind.TWIN, roles={Role.BLS: FRONT})
    folder = place / model.asset("tokenizer")
    folder.mkdir(parents=True)
    lay(folder, "byte_level")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    (place / NAME).write_text(write(Manifest(models=(model,))))
    return place


@asynccontextmanager
async def serving(
    port: int = 0, calls: Counter[str] | None = None, inputs: dict[str, str] | None = None
) -> AsyncGenerator[str]:
    """Its address; ``calls`` counts what is asked of it, by the method's name; ``inputs`` are the model's, and may change."""
    grpc: Any = importlib.import_module("grpc.aio")
    stubs: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")
    messages: Any = importlib.import_module("tritonclient.grpc.service_pb2")
    counted = Counter[str]() if calls is None else calls
    offered = INPUTS if inputs is None else inputs

    class Instant(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]
        async def ModelMetadata(self, request: Any, _: Any) -> Any:  # noqa: N802
            counted["ModelMetadata"] += 1
            tensor = messages.ModelMetadataResponse.TensorMetadata
            inputs = [tensor(name=name, datatype=kind, shape=[-1, 1]) for name, kind in offered.items()]
            return messages.ModelMetadataResponse(name=request.name, inputs=inputs)

        async def ModelConfig(self, _: Any, __: Any) -> Any:  # noqa: N802
            counted["ModelConfig"] += 1
            answer = messages.ModelConfigResponse()
            answer.config.model_transaction_policy.decoupled = True
            return answer

        async def ModelStreamInfer(self, requests: Any, _: Any) -> AsyncIterator[Any]:  # noqa: N802
            async for request in requests:
                counted["ModelStreamInfer"] += 1
                came, given = time.monotonic(), _given(request)
                if given.get("max_tokens", 1) < 1:
                    yield messages.ModelStreamInferResponse(error_message="max_tokens has to be at least 1")
                    return
                for place in range(given.get("max_tokens", 1)):
                    if place and (pause := given.get("seed", 0)):
                        await asyncio.sleep(pause / 1000)
                    yield _said(messages, WORD.format(place, came, time.monotonic()))
                last = messages.ModelStreamInferResponse()
                last.infer_response.parameters["triton_final_response"].bool_param = True
                yield last

    server = grpc.server()
    stubs.add_GRPCInferenceServiceServicer_to_server(Instant(), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)


def _given(request: Any) -> dict[str, int]:
    sizes = {"INT32": "<i", "UINT64": "<Q"}
    pairs = zip(request.inputs, request.raw_input_contents, strict=True)
    return {tensor.name: struct.unpack(sizes[tensor.datatype], raw)[0] for tensor, raw in pairs if tensor.datatype in sizes}


def _said(messages: Any, text: str) -> Any:
    answer = messages.ModelStreamInferResponse()
    for name, kind, raw in (
        ("text_output", "BYTES", struct.pack("<I", len(text)) + text.encode()),
        ("num_output_tokens", "INT32", struct.pack("<i", 1)),
        ("num_input_tokens", "INT32", struct.pack("<i", 8)),
    ):
        answer.infer_response.outputs.add(name=name, datatype=kind, shape=[1])
        answer.infer_response.raw_output_contents.append(raw)
    return answer


async def _main(port: int) -> None:
    async with serving(port):
        gc.freeze()  # a collection of all that is imported would be taken for the port's
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
