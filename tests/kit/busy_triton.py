"""A Triton in miniature whose models are late, or refuse: its gRPC, and metrics as the backend of TensorRT-LLM counts."""

import importlib
import threading
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from forge.serve.pulse import Place

ITERATIONS = 'nv_trt_llm_general_metrics{{model="{model}",version="1",general_type="iteration_counter"}} {count}\n'
ANSWERED = 'nv_inference_request_success{{model="{model}",version="1"}} {count}\n'
BEGUN = 'nv_inference_request_success{{model="tensorrt_llm_bls",version="1"}} {count}\n'


@dataclass
class Busy:
    """``refusing`` are models and what each says at once; all others never answer, but for the ``quick``. ``counts`` are lines
    of metrics that rise with each look, and ``standing`` such that do not."""

    refusing: Mapping[str, str] = field(default_factory=dict[str, str])
    quick: frozenset[str] = frozenset()
    counts: str = ""
    standing: str = ""
    looks: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def up(self, marker: str) -> Generator[Place]:
        grpc: Any = importlib.import_module("grpc")
        stubs: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")
        metrics = ThreadingHTTPServer(("127.0.0.1", 0), self._pages())
        thread = threading.Thread(target=metrics.serve_forever)
        thread.start()
        with ThreadPoolExecutor(16) as threads:
            server = grpc.server(threads)
            port = server.add_insecure_port("127.0.0.1:0")
            stubs.add_GRPCInferenceServiceServicer_to_server(self._models(stubs), server)
            server.start()
            try:
                yield Place(f"127.0.0.1:{port}", f"127.0.0.1:{metrics.server_address[1]}", marker)
            finally:
                self.over.set()
                server.stop(0).wait()
                metrics.shutdown()
                thread.join()
                metrics.server_close()

    def _pages(self) -> type[BaseHTTPRequestHandler]:
        busy = self

        class Pages(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                busy.looks += 1
                lines = ((busy.counts, busy.looks), (busy.standing, 7))
                text = "".join(line.format(model="tensorrt_llm", count=count) for line, count in lines)
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Pages

    def _models(self, stubs: Any) -> Any:
        busy, messages = self, importlib.import_module("tritonclient.grpc.service_pb2")

        class Models(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]
            def ModelMetadata(self, request: Any, _: object) -> Any:  # noqa: N802
                said = messages.ModelMetadataResponse(name=request.name)
                for name, datatype in (("text_input", "BYTES"), ("max_tokens", "INT32")):
                    said.inputs.add(name=name, datatype=datatype, shape=(-1, 1))
                return said

            def ModelConfig(self, _: object, __: object) -> Any:  # noqa: N802
                return messages.ModelConfigResponse()

            def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
                model = next(requests).model_name
                if model in busy.quick or model in busy.refusing:
                    yield messages.ModelStreamInferResponse(error_message=busy.refusing.get(model, ""))
                    return
                gone = threading.Event()
                context.add_callback(gone.set)
                while not (gone.wait(0.05) or busy.over.is_set()):
                    pass

        return Models()
