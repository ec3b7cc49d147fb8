"""The rooms that a build does not need, each imported when it is first asked for: ``later.measuring.Bench``.

The Python API has a method for every verb and the doors one for every adapter; the types of all of them cost a null build half
of its time. ``later.pyi`` says the same to type checkers, and a test holds the two together.
"""

import importlib

ROOMS = {
    "checkup": "forge.checkup",
    "doctor": "forge.doctor",
    "driving": "forge.benching.driving",
    "interviews": "forge.verifying.interviews",
    "measuring": "forge.measuring",
    "page": "forge.benching.page",
    "proof": "forge.proof",
    "proving": "forge.proving",
    "recitals": "forge.verifying.recitals",
    "recovery": "forge.recovery",
    "report": "forge.verifying.report",
    "results": "forge.benching.results",
    "turnover": "forge.turnover",
    "upkeep": "forge.upkeep",
    "watching": "forge.benching.watching",
    "wish": "forge.benching.wish",
    "workload": "forge.benching.workload",
}


def __getattr__(name: str) -> object:
    if name not in ROOMS:
        raise AttributeError(f"module 'forge.later' has no attribute {name!r}")
    return importlib.import_module(ROOMS[name])
