"""The checks that every plugin has to pass, for tests of plugins."""

from forge.testing.conformance import PluginConformance, check_plugin
from forge.testing.new_plugin import new_plugin

__all__ = ["PluginConformance", "check_plugin", "new_plugin"]
