"""For tests: fakes that do the work of the ports in miniature, and the checks that every plugin has to pass."""

from forge.testing.conformance import PluginConformance, check_plugin
from forge.testing.fakes import (
    LLAMA,
    FakeClient,
    FakeEnvironments,
    FakeExecutor,
    FakeOrigin,
    FakeServer,
    tiny_adapter,
    tiny_checkpoint,
)
from forge.testing.new_plugin import new_plugin

__all__ = [
    "LLAMA",
    "FakeClient",
    "FakeEnvironments",
    "FakeExecutor",
    "FakeOrigin",
    "FakeServer",
    "PluginConformance",
    "check_plugin",
    "new_plugin",
    "tiny_adapter",
    "tiny_checkpoint",
]
