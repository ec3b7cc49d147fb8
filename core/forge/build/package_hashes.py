"""The sha256 that a lock holds packages to: those that it or forge knows, and for the others what the package index says."""

from collections.abc import Callable, Sequence

from forge.errors import SourceError
from forge.plan import lock as locks
from forge.schema.values import Environment
from forge.schema.wheels import Hashes, known


def held(
    lock: locks.Lock,
    environments: Sequence[Environment],
    pins: locks.Pins,
    ask: Callable[[Environment], Hashes],
    say: Callable[[str], None],
) -> locks.Lock:
    """``lock`` with the hashes of ``environments``, and with what the recipe's own packages come to; ``pins`` are what it kept.

    What the index does not say is told, and is installed by version.
    """
    found: dict[str, tuple[str, ...]] = {}
    brought = None
    for each in environments:
        made = pins.exact(each)
        brought = pins.brought if made != each else brought
        own = Environment(made.python, made.platform, (), made.bare)
        found |= known(own.bare, pins.hashes)
        try:
            if unknown := locks.unheld(own, pins.hashes):
                found |= ask(Environment(made.python, made.platform, (), unknown))
            if made.packages:
                beside, brought = locks.brought(made, ask(made))
                found |= beside
        except SourceError as error:
            say(f"held to no hash: {', '.join(locks.unheld(made, found))}: {error.what.splitlines()[0]}")
    return lock.held(found, brought)
