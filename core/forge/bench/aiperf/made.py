"""Which tool puts the load on, and what it needs made: forge's own loop needs nothing."""

from collections.abc import Callable

from forge.benching import aiperf
from forge.benching.driving import Driver
from forge.builder import Builder
from forge.doors import Doors
from forge.ports import Event, Listener
from forge.steps import MakeEnvironment, Step
from forge.store import Store


def aiperf_driver(doors: Doors, store: Store, builder: Callable[[], Builder], tell: Listener) -> Driver:
    """NVIDIA's AIPerf; its environment is an artifact like any other, made when it is first asked for.

    HostError for a machine that cannot hold it, SourceError where its packages cannot be had.
    """
    host = doors.host()
    step = Step("aiperf", MakeEnvironment(aiperf.environment(host), host.interpreter))
    if store.find(step.key) is None:
        size = f"{len(aiperf.pins())} packages, {aiperf.SIZE}"
        tell(Event("note", step.name, step.key, text=f"AIPerf {aiperf.version()} gets an environment, once: {size}"))
    with store.using([step.key]):
        place = builder().realise([step])[step.key].path
    return doors.aiperf(place / "bin" / "python3", lambda: store.using([step.key]), _saying(tell))


def _saying(tell: Listener) -> Callable[[str], None]:
    return lambda text: tell(Event("note", "bench", text=text))
