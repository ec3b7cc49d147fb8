"""Who may ask at the OpenAI port: keys, hosts and origins; and what the page is told of each model."""

import http.client
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

import tiny_models
from forge.client.types import ModelMetadata, TensorMetadata
from forge.errors import ServerError
from forge.machine import processes
from forge.schema.values import Ports, RuntimeKind
from forge.serve.openai import sidecar, web
from forge.serve.openai.access import Access, key
from forge.serve.openai.api_errors import Fault
from forge.serve.openai.cards import WORDS, controls
from forge.serve.openai.service import Service
from openai_front import front
from patience import PATIENCE, spare
from tiny_served import Tiny
from triton_fixture import Serving

KEY = "correct-horse-battery"
LOCAL, LOCKED, OPEN = Access(local=True), Access(local=False, key=KEY), Access(local=False)
OWN = ("/health", "/live", "/metrics", "/", "/ui/page.js", "/nothing")
KEPT = (
    *("/v1/models", "/v1/models/tiny", "/v1/chat/completions", "/v1/completions", "/metrics", "/nothing", "/live/x"),
    *("/ui/models", "/ui/../v1/models", "/ui/../v1/models/x.js"),
)
"""What nobody without the key is told."""
SHOWN = {"authorization": f"Bearer {KEY}"}


def headers(host: str = "127.0.0.1:9000", **more: str) -> dict[str, str]:
    return {"host": host, **more}


@pytest.mark.parametrize(
    ("access", "path", "said"),
    [
        (LOCAL, "/", headers()),
        (LOCAL, "/ui/page.js", headers("localhost:9000")),
        (LOCAL, "/v1/models", headers("[::1]:9000")),
        (LOCAL, "/v1/models", headers("models.internal")),  # through a proxy of this machine, or by another name: no browser
        (LOCAL, "/v1/chat/completions", headers(origin="http://127.0.0.1:9000")),
        (LOCAL, "/v1/models", headers("models.internal", **{"user-agent": "OpenAI/Python 2.0"})),
        (LOCAL, "/metrics", headers("localhost:9000", **{"user-agent": "Mozilla/5.0", "accept-language": "en"})),
        (LOCKED, "/v1/models", headers("gpu7.example", **{"user-agent": "Mozilla/5.0", "accept-language": "en"}) | SHOWN),
        (LOCKED, "/v1/models", headers("gpu7.example") | SHOWN),
        (LOCKED, "/v1/models", headers("gpu7.example", authorization=f"bearer {KEY}")),
        (LOCKED, "/", headers("gpu7.example")),
        (LOCKED, "/ui/page.css", headers("gpu7.example")),
        (LOCKED, "/health", headers("gpu7.example")),
        (OPEN, "/v1/chat/completions", headers("gpu7.example")),
    ],
)
def test_these_are_let_in(access: Access, path: str, said: dict[str, str]) -> None:
    access.require(path, said)


@pytest.mark.parametrize(
    ("access", "path", "said", "status"),
    [
        (LOCAL, "/", headers("evil.example:9000"), 421),
        (LOCAL, "/ui/models", headers("127.0.0.1.evil.example"), 421),
        (LOCAL, "/v1/chat/completions", headers("evil.example:9000", origin="http://evil.example:9000"), 421),
        (LOCAL, "/v1/models", headers("evil.example:9000", **{"user-agent": "Mozilla/5.0 (X11; Linux x86_64)"}), 421),
        (LOCAL, "/v1/models/tiny", headers("evil.example:9000", **{"accept-language": "en"}), 421),
        (LOCAL, "/metrics", headers("evil.example:9000", **{"sec-fetch-site": "same-origin"}), 421),
        (LOCAL, "/health", headers("evil.example:9000", **{"user-agent": "curl/8", "accept-language": "*"}), 421),
        (LOCAL, "/v1/chat/completions", headers(origin="https://evil.example"), 403),
        (LOCAL, "/v1/chat/completions", headers(origin="null"), 403),
        *((access, path, headers(origin="https://evil.example"), 403) for access in (LOCAL, OPEN, LOCKED) for path in OWN),
        (LOCAL, "/v1/chat/completions", headers(origin="http://127.0.0.1:9001"), 403),
        (OPEN, "/v1/chat/completions", headers("gpu7.example", origin="https://evil.example"), 403),
        (LOCKED, "/v1/chat/completions", headers("gpu7.example") | SHOWN | {"origin": "https://evil.example"}, 403),
        (LOCAL, "/v1/chat/completions", headers(origin="http://evil127.0.0.1:9000"), 403),
        *((LOCKED, path, headers("gpu7.example"), 401) for path in KEPT),
        (LOCKED, "/v1/models", headers("gpu7.example", authorization=f"Basic {KEY}"), 401),
        (LOCKED, "/v1/models", headers("gpu7.example", authorization=f"Bearer {KEY}x"), 401),
        (LOCKED, "/v1/models", headers("gpu7.example", authorization="Bearer \N{ROCKET}"), 401),
    ],
)
def test_these_are_not(access: Access, path: str, said: dict[str, str], status: int) -> None:
    with pytest.raises(Fault) as caught:
        access.require(path, said)
    assert caught.value.status == status


def test_the_page_is_for_this_machine_or_a_key() -> None:
    assert (LOCAL.page, LOCKED.page, OPEN.page) == (True, True, False)


@pytest.mark.parametrize("access", [LOCAL, LOCKED, OPEN])
def test_a_port_open_to_all_has_no_page(access: Access) -> None:
    async def cards() -> bytes:
        return b"{}"

    laid = web.application(cast("Service", None), door=web.Door(access, cards))
    assert ({"/", "/ui/models"} <= {getattr(route, "path", "") for route in laid.routes}) == access.page


def test_beyond_the_loopback_a_port_without_key_has_no_page(tmp_path: Path) -> None:
    with front("127.0.0.1:1", tmp_path, host="0.0.0.0") as api:
        assert [asked(api, path, {})[0] for path in ("/live", "/", "/ui/page.js", "/ui/models")] == [200, 404, 404, 404]


def test_a_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(secrets, "compare_digest", digest)
    LOCKED.require("/v1/models", headers() | SHOWN)
    assert compared == [(KEY.encode(), KEY.encode())]


def test_a_key_that_others_can_read_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "a key"
    file.write_text(KEY)
    for mode, told in ((0o600, 0), (0o640, 1), (0o604, 2), (0o400, 2)):
        file.chmod(mode)
        sidecar.require(Ports(openai=9000, key_file=str(file)), said.append)
        assert len(said) == told
    assert all(f"chmod 600 '{file}'" in each and KEY not in each for each in said)


TWO = "one-key-of-two\nthe-other-key\n"


@pytest.mark.parametrize(
    "text", ["", "\n", "short", "two words here", "x" * 600, TWO, "a\0key-with-nul", "\ufeffa-key-with-a-mark"]
)
def test_a_file_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(ServerError, match="holds no key"):
        key(tmp_path / "key")
    with pytest.raises(ServerError, match="cannot be read"):
        key(tmp_path / "none")


@pytest.mark.slow
def test_a_port_with_a_key_tells_nothing_without_it(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    with front(tiny.address, tiny.target.repository, key_file=str(tmp_path / "key")) as api:
        for path, shown, wanted in [
            ("/v1/models", {}, 401),
            ("/ui/models", {}, 401),
            ("/ui/models", SHOWN, 200),
            ("/v1/models", SHOWN, 200),
            ("/", {}, 200),
            ("/ui/page.js", {}, 200),
            ("/ui/nothing.js", {}, 404),
            ("/live", {}, 200),
        ]:
            assert (asked(api, path, shown)[0], path) == (wanted, path)
        assert asked(api, "/v1/models", {})[1]["www-authenticate"] == "Bearer"
        assert "access-control-allow-origin" not in asked(api, "/v1/models", {**SHOWN, "origin": api.removesuffix("/v1")})[1]


def asked(api: str, path: str, shown: dict[str, str]) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(api.split("/")[2], timeout=PATIENCE)
    try:
        connection.request("GET", path, headers=shown)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


@pytest.fixture
def exposed(serving: Serving, tmp_path: Path) -> Iterator[Ports]:
    """The ports of a server whose page is wanted beyond the loopback, with a key that it drew."""
    tiny_models.lay(tmp_path / "repository", "identity", tiny_models.IDENTITY)
    plain = serving.launch(tmp_path / "repository", detach=True)
    (port,) = spare(1)
    triton = serving.triton()
    running = triton.start(replace(plain, ports=replace(plain.ports, openai=port, host="0.0.0.0", page=True)), lambda _: None)
    try:
        yield running.ports
        log = Path(running.log).with_suffix(".openai.log").read_text()
    finally:
        triton.stop(running)
    assert "key" not in log
    assert not Path(running.ports.key_file).exists()


@pytest.mark.slow
@pytest.mark.network
def test_a_key_is_drawn_beyond_loopback_no_process_shows_it(exposed: Ports) -> None:
    file = Path(exposed.key_file)
    drawn = file.read_text()
    assert len(drawn) >= 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    address = sidecar.page(exposed)
    assert address.endswith(f":{exposed.openai}/#key={drawn}")
    assert "0.0.0.0" not in address
    everybody = [Path("/proc", name, part) for name in os.listdir("/proc") if name.isdigit() for part in ("cmdline", "environ")]
    kept = [each for each in file.parent.iterdir() if each.is_file() and each != file]
    assert {".json", ".log"} <= {each.suffix for each in kept}
    assert [each for each in kept if stat.S_IMODE(each.stat().st_mode) & 0o077] == []
    told = [each for each in (*everybody, *kept) if each.exists() and drawn.encode() in _read(each)]
    assert told == []
    pid = processes.listener(exposed.openai)
    assert pid is not None
    assert str(file) in _read(Path("/proc", str(pid), "cmdline")).decode()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def known(*inputs: str) -> ModelMetadata:
    return ModelMetadata("m", {name: TensorMetadata(name, "FP32", (1,)) for name in inputs}, {})


SAMPLING = ("text_input", "max_tokens", "temperature", "top_k", "top_p", "random_seed", "beam_width")
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
ENGINE = (*SAMPLING, *PENALTIES, "stop_words", "return_log_probs")


@pytest.mark.parametrize(
    ("runtime", "takes", "built", "lacking"),
    [
        (RuntimeKind.ENGINE, known(*ENGINE), {"max_beam_width": 4}, {"min_p", "top_logprobs"}),
        (RuntimeKind.ENGINE, known(*ENGINE), {"max_beam_width": 1}, {"min_p", "top_logprobs", "beam_width"}),
        (RuntimeKind.TWIN, known(*ENGINE, "min_p", "num_top_log_probs"), {}, set[str]()),
        (RuntimeKind.VLLM, known("text_input", "sampling_parameters", "return_cumulative_logprob"), {}, {"beam_width"}),
        (RuntimeKind.TWIN, known(), {}, set(WORDS)),
    ],
)
def test_what_a_model_does_not_know_is_said_with_reason(
    runtime: RuntimeKind, takes: ModelMetadata, built: dict[str, int], lacking: set[str]
) -> None:
    whys = dict(controls(takes, runtime, built))
    assert set(whys) == set(WORDS)
    assert {name for name, why in whys.items() if why} == lacking
