"""Which tool puts the load on, and what it needs made: forge's own loop needs nothing."""

from collections.abc import Callable

from forge.bench.aiperf import records
from forge.bench.driver import Driver
from forge.bench.outside import Outside
from forge.build.builder import Builder
from forge.events import Event, Listener
from forge.plan.steps import MakeEnvironment, Step
from forge.store.store import Store


def aiperf_driver(outside: Outside, store: Store, builder: Callable[[], Builder], tell: Listener) -> Driver:
    """NVIDIA's AIPerf; its environment is an artifact like any other, made when it is first asked for.

    HostError for a machine that cannot hold it, SourceError where its packages cannot be had.
    """
    host = outside.host()
    step = Step("aiperf", MakeEnvironment(records.environment(host), host.interpreter))
    if store.find(step.key) is None:
        size = f"{len(records.pins())} packages, {records.SIZE}"
        tell(Event("note", step.name, step.key, text=f"AIPerf {records.version()} gets an environment, once: {size}"))

    def say(text: str) -> None:
        tell(Event("note", "bench", text=text))

    with store.using([step.key]):
        place = builder().realise([step])[step.key].path
    return outside.aiperf(place / "bin" / "python3", lambda: store.using([step.key]), say)
