"""What is looked at beside a measurement: Triton's metrics and the GPUs."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from forge.bench.instruments import ServerInstruments
from forge.schema.values import Ports
from lying_server import Turn, lying


def test_unreadable_metrics_are_a_note_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """prometheus-client comes with triton-forge[bench]; who has forge alone measures all the same."""
    monkeypatch.setitem(sys.modules, "prometheus_client.parser", None)
    metrics = ThreadingHTTPServer(("127.0.0.1", 0), _Metrics)
    threading.Thread(target=metrics.serve_forever, daemon=True).start()
    try:
        with ServerInstruments(Ports(metrics=metrics.server_port)).look() as seen:
            pass
    finally:
        metrics.shutdown()
        metrics.server_close()
    assert seen.triton == {}
    assert "prometheus-client is not installed (pip install 'triton-forge[bench]')" in seen.notes[0]


def test_metrics_that_never_end_are_a_note_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge.bench.instruments._PATIENCE", 0.5)

    def drip(turn: Turn) -> None:
        turn.say(200, b"nv_inference_count{", content_length=None)
        turn.drip()

    with lying(drip) as liar, ServerInstruments(Ports(metrics=liar.port)).look() as seen:
        pass
    assert "could not be read" in seen.notes[0]
    assert liar.sent < 400, "it was not heard to its end"


class _Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'nv_inference_count{model="m",version="1"} 3\n')

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on stderr."""
