"""What a server uses: since when it runs, what it and each of its models hold in memory, and how often each was asked."""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from forge.machine import process_memory, processes
from forge.serve import pulse
from forge.serve.server_types import Running
from forge.serve.vitals import Memory, Usage, Used


class Held(Struct, frozen=True):
    """What all processes of a server hold together, and those of each model, by its folder."""

    whole: Memory
    models: Mapping[str, Memory]


def usage(running: Running, environ: Mapping[str, str]) -> Usage:
    """What can be seen of it from outside; nothing of what another machine holds."""
    seen = held(running.shared_memory, environ, (running.pid,) if running.started else ())
    counted = pulse.answered(running)
    models: dict[str, Used] = {}
    for model in running.models:
        memory, (answered, failed) = seen.models.get(model, Memory()), counted.get(model, (0, 0))
        models[model] = Used(host=memory.host, gpu=memory.gpu, requests=answered, failed=failed)
    return Usage(seconds=process_memory.age(running.started), host=seen.whole.host, gpu=seen.whole.gpu, models=models)


def held(marker: str, environ: Mapping[str, str], pids: Iterable[int] = ()) -> Held:
    """What the processes that carry ``marker``, and ``pids``, hold; nothing without a marker."""
    mine = processes.offspring((*processes.marked(marker), *pids)) if marker else frozenset[int]()
    on_gpus = process_memory.on_gpus(environ)
    stubs = processes.stubs(marker) if marker else {}
    own = {model: processes.offspring(stub.pid for stub in each) for model, each in stubs.items()}
    return Held(_memory(mine, on_gpus), {model: _memory(each, on_gpus) for model, each in own.items() if each})


def _memory(pids: frozenset[int], on_gpus: Mapping[int, int]) -> Memory:
    """Of ``pids`` together. Where no process is seen on a GPU at all, nobody says anything of those."""
    gpu = sum(size for pid, size in on_gpus.items() if pid in pids) if on_gpus else None
    return Memory(host=process_memory.host(pids) if pids else None, gpu=gpu)
