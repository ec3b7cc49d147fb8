"""Models that are taken out of a server and do not end, because their processes have died, cost one wait and not one each."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from forge.schema.values import Ports
from forge.serve import server
from forge.serve.server_types import Running


def test_models_that_do_not_end_are_waited_for_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now, waited = [0.0], list[float]()

    def unload(_: Running, __: str, patience: float) -> None:
        waited.append(patience)
        now[0] += patience

    def changing(_: object, running: Running) -> nullcontext[Running]:
        return nullcontext(running)

    monkeypatch.setattr("forge.serve.server.control.unload", unload)
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(server.Servers, "_changing", changing)
    (tmp_path / "servers").mkdir()
    running = Running("", 1, 0.0, Ports(), ("a", "b", "c"), "", "mark")
    left = server.Servers(tmp_path, {}, patience=600.0).unload(running, ("a", "b", "c"))
    assert left.models == ()
    assert waited == [60.0, 2.0, 2.0]
