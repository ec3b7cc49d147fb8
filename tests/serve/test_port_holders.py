"""Why a server cannot listen where it is asked to: another has the port, or the address is none for it."""

import errno

import pytest
from msgspec.structs import replace

from forge.errors import ServerError
from forge.machine import processes
from forge.schema.values import Ports
from forge.serve.port_holders import not_free, require_free
from patience import free_ports

ELSEWHERE = "192.0.2.1"
"""No machine's: RFC 5737 keeps it for documentation."""


def test_an_address_of_another_machine_is_no_taken_port() -> None:
    ports = replace(free_ports(), host=ELSEWHERE)
    with pytest.raises(ServerError, match="this machine has no such address") as caught:
        require_free(ports, ())
    assert (caught.value.where, "--host" in caught.value.hint) == (f"{ELSEWHERE}:{ports.http}", True)
    assert not_free(ports) == "this machine has no such address"


def test_a_port_of_the_systems_is_no_taken_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(host: str, port: int) -> OSError:
        return PermissionError(errno.EACCES, f"{host}:{port}")

    monkeypatch.setattr(processes, "refusal", forbidden)
    with pytest.raises(ServerError) as caught:
        require_free(Ports(80), ())
    said = ("this user may not listen at port 80", "choose one above 1023 with --http-port")
    assert (caught.value.what, caught.value.hint) == said
