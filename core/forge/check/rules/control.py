"""Who can change a server: a Triton that cannot keep model control to forge, on the loopback and beyond."""

from collections.abc import Iterator

from forge.check.model import Repository
from forge.check.rules.rule import Found, Rule, Severity
from forge.schema.manifest import NAME

_WHY = (
    "Model control, shared memory, trace and log settings are part of Triton's HTTP and gRPC APIs, and loading a model can run "
    "code that comes with the request. forge keeps them to itself by --http-restricted-api and --grpc-restricted-protocol, "
    "which Triton 2.40 (23.11) and later have. "
)
_MEND = "take a Triton of 2.40 or later"


def _beyond(repository: Repository) -> Iterator[Found]:
    deployed = repository.deployed
    if repository.unrestricted and deployed and not deployed.ports.local:
        what = f"{_old(repository)}, and this deployment has it listen at {deployed.ports.host}: `forge serve` refuses that"
        yield Found(deployed.file, what)


def _here(repository: Repository) -> Iterator[Found]:
    deployed = repository.deployed
    if repository.unrestricted and (deployed is None or deployed.ports.local):
        what = f"{_old(repository)}: whoever reaches its ports, every user of this machine, can have it run code"
        yield Found(deployed.file if deployed else NAME, what)


def _old(repository: Repository) -> str:
    return f"the Triton in {repository.unrestricted} is too old to keep model control to forge"


RULES = (
    Rule(
        "open-control",
        Severity.ERROR,
        "a server beyond the loopback that would run anybody's code",
        _WHY + "A deployment whose [ports] host is not the loopback is not served by an older one, unless that is asked for by "
        "name (`forge serve --exposed`).",
        "unrecognized option '--http-restricted-api=...'",
        f"{_MEND}, or take [ports] host out: then it listens on 127.0.0.1",
        _beyond,
    ),
    Rule(
        "open-control-here",
        Severity.WARNING,
        "a server whose control every user of this machine has",
        _WHY + "`forge serve` says so of an older one, and serves it on the loopback.",
        "unrecognized option '--http-restricted-api=...'",
        _MEND,
        _here,
    ),
)
