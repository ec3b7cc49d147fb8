"""The Python that runs forge, where forge starts a program of its own with it."""

import sys

from forge.errors import HostError


def own_python() -> str:
    """Its path; HostError in a program that has a Python inside and does not say where a whole one is."""
    if not sys.executable:
        what = "this Python does not say where its own program is (sys.executable is empty), and forge starts others with it"
        raise HostError(what, hint="set sys.executable to a Python that has forge, before forge is used; or run `forge` itself")
    return sys.executable
