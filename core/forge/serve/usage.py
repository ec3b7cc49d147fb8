"""What a server uses: since when it runs, what it and each of its models hold in memory, and how often each was asked."""

from collections.abc import Mapping

from forge.machine import process_memory, processes
from forge.serve import pulse
from forge.serve.types import Running
from forge.serve.vitals import Usage, Used


def usage(running: Running, environ: Mapping[str, str]) -> Usage:
    """What can be seen of it from outside; nothing of what another machine holds."""
    marker = running.shared_memory
    mine = process_memory.offspring((*processes.marked(marker), *((running.pid,) if running.started else ())))
    on_gpus = process_memory.on_gpus(environ)
    counted = pulse.answered(running)
    models: dict[str, Used] = {}
    stubs = processes.stubs(marker)
    for model in running.models:
        own = process_memory.offspring(stub.pid for stub in stubs.get(model, ()))
        answered, failed = counted.get(model, (0, 0))
        seen = bool(own)
        models[model] = Used(
            host=process_memory.host(own) if seen else None,
            gpu=_together(on_gpus, own) if seen else None,
            requests=answered,
            failed=failed,
        )
    return Usage(
        seconds=process_memory.age(running.started),
        host=process_memory.host(mine) if mine else None,
        gpu=_together(on_gpus, mine),
        models=models,
    )


def _together(on_gpus: Mapping[int, int], pids: frozenset[int]) -> int | None:
    """None where no process is seen on a GPU at all: then nobody says."""
    return sum(size for pid, size in on_gpus.items() if pid in pids) if on_gpus else None
