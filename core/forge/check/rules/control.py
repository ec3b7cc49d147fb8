"""Who can change a server: a Triton that cannot keep model control to forge, on the loopback and beyond."""

from collections.abc import Iterator

from forge.check.model import Repository
from forge.check.rules.rule import Found
from forge.schema.manifest import NAME


def open_control(repository: Repository) -> Iterator[Found]:
    deployed = repository.deployed
    if repository.unrestricted and deployed and not deployed.ports.local:
        what = f"{_old(repository)}, and this deployment has it listen at {deployed.ports.host}: `forge serve` refuses that"
        yield Found(deployed.file, what)


def open_control_here(repository: Repository) -> Iterator[Found]:
    deployed = repository.deployed
    if repository.unrestricted and (deployed is None or deployed.ports.local):
        what = f"{_old(repository)}: whoever reaches its ports, every user of this machine, can have it run code"
        yield Found(deployed.file if deployed else NAME, what)


def _old(repository: Repository) -> str:
    return f"the Triton in {repository.unrestricted} is too old to keep model control to forge"
