"""What is seen of a server's models from outside, from a server in miniature that may break off."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from msgspec.structs import replace

from forge.client.grpc import METADATA_SECONDS, Client
from forge.errors import InferenceError, Trouble
from forge.machine import processes, stillness
from forge.schema.values import Ports
from forge.serve import pulse, ready
from forge.serve.process import TritonProcess
from forge.serve.pulse import Place
from forge.serve.server_types import Running
from patience import soon
from stuck import in_fault

MARKER = f"forge-pulse-test-{os.getpid()}-"
SAID = {
    "/v2/models/stats": b'{"model_stats": [{"name": "bls", "inference_stats": {"fail": {"count": 3}}}]}',
    "/v2/models/bls/config": b'{"backend": "python", "instance_group": [{"count": 2}]}',
    "/metrics": b'nv_inference_pending_request_count{model="bls",version="1"} 4.000000\n',
}


@contextmanager
def speaking(broken: str = "") -> Generator[Running]:
    """A server that breaks off in the middle of its answer at the path ``broken``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(SAID[self.path])))
            self.end_headers()
            self.wfile.write(SAID[self.path][: 5 if self.path == broken else None])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    port = server.server_address[1]
    try:
        yield Running("/r", 0, 0.0, Ports(port, port, port), ("bls",), "", MARKER)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[None]:
    """A process with the arguments of one of the model's stubs."""
    code = tmp_path / "bls" / "1" / "model.py"
    code.parent.mkdir(parents=True)
    code.write_text("print('here', flush=True)\ninput()\n")
    words = ["/opt/triton_python_backend_stub", str(code), f"{MARKER}-region"]
    with subprocess.Popen(words, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline()  # it has begun: before that its arguments may not be seen, and it is at work
            yield
        finally:
            process.kill()


@pytest.mark.usefixtures("stub")
def test_tritons_counts_and_its_processes_are_put_together() -> None:
    with speaking() as running:
        (signs,) = (pulse.signs(running) or {}).values()
    assert (signs.processes, signs.instances, signs.failed, signs.pending) == (1, 2, 3, 4)


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("path", SAID)
def test_nothing_is_seen_of_a_server_that_breaks_off(path: str) -> None:
    assert processes.stubs(MARKER)
    with speaking(broken=path) as running:
        assert pulse.signs(running) is None


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a server that takes calls and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_silent_server_has_no_more_than_the_deadline(mute: str) -> None:
    began = time.monotonic()
    found = pulse.ask(Place(mute, "", MARKER), ("bls", "engine"), 1.0)
    assert not any(each.answers for each in found)
    assert time.monotonic() - began < METADATA_SECONDS


@pytest.mark.usefixtures("stub")
def test_a_hanging_model_is_idle_and_says_where_it_stopped(mute: str) -> None:
    (one,) = pulse.ask(Place(mute, "", MARKER), ("bls",), 1.0)
    assert (one.late, one.works) == (True, False)
    for each in processes.stubs(MARKER)["bls"]:
        os.kill(each.pid, signal.SIGSTOP)
    (one,) = pulse.ask(Place(mute, "", MARKER), ("bls",), 1.0)
    assert one.why.endswith("its process is stopped")


def late(_: Client) -> None:
    """As gRPC says it of a server that takes its connection and never speaks, after 20 s."""
    raise InferenceError(
        "no server answers (connection attempt timed out before receiving SETTINGS frame)", trouble=Trouble.AWAY
    )


def test_a_triton_as_a_whole_speaks_stands_and_uses(mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge.serve.pulse.asked", partial(ready.asked, seconds=0.2))
    port, way = int(mute.rpartition(":")[2]), TritonProcess(os.environ)
    with subprocess.Popen(("sh", "-c", "sleep 600 & wait"), start_new_session=True) as process:
        try:
            assert soon(lambda: len(processes.offspring((process.pid,))) == 2)
            ticks = processes.started(process.pid) or 0.0
            deaf = Running("/r", process.pid, ticks, Ports(port, port, port), (), "", MARKER)
            monkeypatch.setattr(Client, "server", late)
            found = pulse.stance(deaf, stands=way.stands(deaf))
            assert (found.speaks, found.stands) == (False, False)
            assert found.cpu.keys() == processes.offspring((process.pid,))
            with speaking() as metrics:
                assert pulse.stance(
                    replace(deaf, ports=replace(deaf.ports, metrics=metrics.ports.metrics)), stands=False
                ).speaks
            os.kill(process.pid, signal.SIGSTOP)
            assert soon(lambda: way.stands(deaf))
            assert pulse.stance(replace(deaf, pid=0, started=0.0), stands=False).cpu == {}
            way.kill(deaf)
            assert processes.started(process.pid) is None
        finally:
            processes.kill_group(process.pid)


@pytest.mark.parametrize(("hangs", "said"), [(True, ["SIGABRT"]), (False, [])])
def test_a_fault_in_the_log_needs_a_thread_in_it(tmp_path: Path, *, hangs: bool, said: list[str]) -> None:
    (tmp_path / "log").write_text("Signal (6) received.\n")
    with in_fault(hangs=hangs) as pid, speaking() as well:
        running = replace(well, pid=pid, started=processes.started(pid) or 0.0, log=str(tmp_path / "log"))
        assert soon(lambda: bool(stillness.faults(pid)) == hangs)
        found = pulse.stance(running, stands=False)
    assert ([*found.faults.values()], found.speaks) == (said, not hangs)
