"""Why a server cannot listen where it is asked to: another has the port, or the address is none for it."""

import errno
from pathlib import Path

import pytest
from msgspec.structs import replace

import tiny_models
from forge.errors import ServerError
from forge.machine import processes
from forge.schema.values import Ports
from forge.serve.model_control import load, unload
from forge.serve.port_holders import addressed, holder, not_free, require_free
from forge.serve.server_types import Running
from patience import PATIENCE, free_ports
from triton_fixture import Serving

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


def test_a_port_of_forges_own_server_says_what_ends_that(tmp_path: Path) -> None:
    ports = free_ports()
    other = Running(str(tmp_path / "my models"), 1, 0.0, ports, (), "", "")
    said = f"`forge stop --repository '{tmp_path}/my models'` ends it"
    assert said in holder(ports.http, (other,))


@pytest.mark.parametrize(
    ("host", "address", "at"),
    [
        ("localhost", "127.0.0.1", "127.0.0.1:8001"),
        ("10.0.0.7", "10.0.0.7", "10.0.0.7:8001"),
        ("::1", "::1", "[::1]:8001"),
        ("[::]", "::", "[::]:8001"),
        ("::ffff:127.0.0.1", "127.0.0.1", "127.0.0.1:8001"),
    ],
)
def test_a_host_is_its_address_and_ipv6_in_brackets(host: str, address: str, at: str) -> None:
    found = addressed(Ports(host=host))
    assert (found.host, found.at(found.grpc)) == (address, at)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("no..host", "no address is known"),
        ("fe80::1%lo", "with a scope"),
        ("255.255.255.255", "of many machines"),
        ("ff02::1", "of many machines"),
    ],
)
def test_a_host_that_triton_cannot_listen_at_is_said(host: str, said: str) -> None:
    with pytest.raises(ServerError, match=said) as caught:
        addressed(Ports(host=host))
    assert "--host" in caught.value.hint


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(processes.refusal("::1", 0) is not None, reason="no IPv6 here")
def test_a_triton_listens_at_ipv6_alone_and_is_asked_there(serving: Serving, tmp_path: Path) -> None:
    tiny_models.lay(tmp_path / "repository", "identity", tiny_models.IDENTITY)
    launch = serving.launch(tmp_path / "repository")
    triton, ports = serving.triton(), replace(launch.ports, host="::1")
    running = triton.start(replace(launch, ports=ports), lambda _: None)
    try:
        assert [processes.free("127.0.0.1", port) for port in (ports.http, ports.grpc, ports.metrics)] == [True] * 3
        assert triton.signs(running)
        (pulse,) = triton.ask(running, PATIENCE)
        assert pulse.answers
        unload(running, "identity", PATIENCE)
        load(running, "identity", lambda: triton.alive(running), PATIENCE)
        assert [each.stranger for each in triton.running()] == [""]
    finally:
        triton.stop(running)
