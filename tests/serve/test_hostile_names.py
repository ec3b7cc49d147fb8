"""Names that no model has, at every port: they find nothing, break nothing, and are told as texts and no more."""

import http.client
import importlib
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from forge.api.forge import Forge
from forge.client.types import Request
from forge.schema.adapters import FOLDER, TASKS
from forge.schema.manifest import PublishedModel
from forge.schema.values import Names, RuntimeKind
from forge.serve.lookup import Target
from forge.serve.server_types import Running
from openai_front import front
from patience import PATIENCE
from tiny_served import Tiny

pb: Any = importlib.import_module("tritonclient.grpc.service_pb2")
stubs: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")

INJECTED = "forge_evil"
NAMES = (
    *("../x", "..", ".", "../../../../etc/passwd", "/etc/passwd", "%2e%2e", "%2e%2e%2f%2e%2e", "tiny/../tiny", "_assets/tiny"),
    *("tensorrt_llm_bls\0", "\0", f"tiny\n{INJECTED} 1", f'tiny"}} 1\n{INJECTED}{{a="', "tiny\r\nX-Evil: 1", " tiny", "tiny "),
    *("x" * 10_000, "t\u0456ny", "tiny\u200b", "\u202eynit", "TINY", "\x1b[31mtiny", "tensorrt_llm_bl\u0455"),
    *("<img src=x onerror=alert(1)>", "ti'ny", 'ti"ny', "'; --", "${jndi:ldap://x}", "%s%n", "tiny\\", "forge.json"),
)


@pytest.mark.parametrize("runtime", [RuntimeKind.ENGINE, RuntimeKind.LLMAPI, RuntimeKind.TWIN, RuntimeKind.VLLM])
def test_an_adapter_of_an_odd_name_is_not_offered(tmp_path: Path, runtime: RuntimeKind) -> None:
    """Who made the repository may have named it: it leads nowhere, and reaches no page and no terminal."""
    model = PublishedModel(name="m", entry="e", runtime=runtime, roles=Names("m").all())
    folder = tmp_path / model.asset(FOLDER)
    names = ("../../up", "..", "<b>", "a\x1b[31m", "a:b", "a\u202eb", "sql")
    for name in names:
        if "/" not in name:
            (folder / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / model.asset(TASKS)).write_text(json.dumps({name: at for at, name in enumerate(names)}))
    assert Target("localhost:1", model, tmp_path).adapters == ("sql",)


# -- at ports that are served


@pytest.fixture(scope="module")
def api(tiny: Tiny) -> Iterator[str]:
    with front(tiny.address, tiny.target.repository) as found:
        yield found.split("/")[2]


@pytest.fixture(scope="module")
def running(tiny: Tiny, shop: Forge) -> Running:
    return shop.server(tiny.target.repository)


CUT = 0
"""Triton 2.51 ends a connection whose address has more than 8 KiB, without a word."""


def told(address: str, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", address)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        try:
            answer = connection.getresponse()
        except http.client.RemoteDisconnected:
            return CUT, {}, b""
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def metrics(address: str) -> tuple[set[str], set[str]]:
    """Names of families, and of models in their labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {each.name for each in families}, {
        one.labels["model"] for each in families for one in each.samples if "model" in one.labels
    }


@pytest.mark.slow
def test_no_odd_name_is_a_model_at_the_openai_port(api: str) -> None:
    asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    for path, more in (("/v1/chat/completions", asked), ("/v1/completions", {"prompt": "x", "max_tokens": 1})):
        for name in NAMES:
            status, headers, body = told(api, "POST", path, json.dumps({"model": name, **more}).encode())
            assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found"), name
            assert headers["content-type"] == "application/json"
            assert "x-evil" not in headers
    for name in NAMES:
        status, headers, body = told(api, "GET", f"/v1/models/{quote(name, safe='/')}")
        assert status in (400, 404), name
        assert json.loads(body)["error"]
        assert "x-evil" not in headers
    assert (
        told(api, "POST", "/v1/completions", json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode())[0] == 200
    )
    names, models = metrics(api)
    assert INJECTED not in names
    assert models == {"tiny"}


CALLS: dict[str, Callable[[str], object]] = {
    "ModelReady": lambda name: pb.ModelReadyRequest(name=name),
    "ModelMetadata": lambda name: pb.ModelMetadataRequest(name=name),
    "ModelConfig": lambda name: pb.ModelConfigRequest(name=name),
    "ModelInfer": lambda name: pb.ModelInferRequest(model_name=name),
    "ModelStatistics": lambda name: pb.ModelStatisticsRequest(name=name),
}


REFUSALS = ("not ready", "NOT_FOUND", "INVALID_ARGUMENT", "UNAVAILABLE", "RESOURCE_EXHAUSTED")
"""The last of an error that repeats a long name, which is too long for gRPC's own metadata."""


def called(address: str, call: str, name: str) -> str:
    """What gRPC says to it."""
    with grpc.insecure_channel(address) as channel:
        try:
            said = getattr(stubs.GRPCInferenceServiceStub(channel), call)(CALLS[call](name), timeout=PATIENCE)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "not ready" if call == "ModelReady" and not said.ready else "done"


@pytest.mark.slow
def test_no_odd_name_is_a_model_at_tritons_ports(tiny: Tiny, shop: Forge, running: Running) -> None:
    logged = Path(running.log).stat().st_size
    web, counted = (f"127.0.0.1:{port}" for port in (running.ports.http, running.ports.metrics))
    before = metrics(counted)
    for name in NAMES:
        for method, end in (("GET", ""), ("GET", "/config"), ("GET", "/stats"), ("GET", "/ready"), ("POST", "/infer")):
            status, headers, body = told(
                web, method, f"/v2/models/{quote(name, safe='')}{end}", b"{}" if method == "POST" else None
            )
            assert 400 <= status < 500 or (status == CUT and len(name) > 8000), (name, end, status, body[:200])
            assert "x-evil" not in headers
    whole = [name for name in NAMES if "\0" not in name]  # to Triton a name ends at its first NUL: it is another spelling
    assert [(call, name) for name in whole for call in CALLS if called(tiny.address, call, name) not in REFUSALS] == []
    assert metrics(counted) == before
    with Path(running.log).open("rb") as log:
        log.seek(logged)
        assert not re.search(rf"(?m)^{INJECTED}".encode(), log.read())
    assert "".join(each.text for each in shop.generate(tiny.address, Request("tensorrt_llm_bls", "x", max_tokens=2)))
