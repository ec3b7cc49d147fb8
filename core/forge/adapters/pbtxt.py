"""Triton's ModelConfig message, out of tritonclient's generated module alone.

``import tritonclient.grpc`` costs 181 ms because it brings grpc along; its model_config_pb2 loaded by path costs 37.
"""

import sys
from importlib import util
from pathlib import Path
from typing import Protocol, cast

from google.protobuf.message import Message

from forge.errors import HostError

MODULE = "tritonclient.grpc.model_config_pb2"


class _Generated(Protocol):
    def ModelConfig(self) -> Message: ...  # noqa: N802 (the generated class's name)


def blank() -> Message:
    """An empty ModelConfig. Raises HostError when tritonclient is not installed whole."""
    return _module().ModelConfig()


def _module() -> _Generated:
    # Kept under a name of its own: under tritonclient's it would hide that the package itself was never imported.
    name = f"forge:{MODULE}"
    for known in (MODULE, name):
        if known in sys.modules:
            return cast("_Generated", sys.modules[known])
    package = util.find_spec("tritonclient")
    places = [Path(place, "grpc", "model_config_pb2.py") for place in (package and package.submodule_search_locations) or ()]
    file = next((place for place in places if place.is_file()), None)
    spec = util.spec_from_file_location(name, file) if file else None
    if spec is None or spec.loader is None:
        raise HostError("tritonclient[grpc] is not installed", hint="install forge again: `pip install triton-forge`")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return cast("_Generated", module)
