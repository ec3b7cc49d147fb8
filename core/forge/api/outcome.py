"""What a build leaves behind, as `forge build` and the Python API tell it."""

from pathlib import Path

from msgspec import Struct

from forge.check.rules import Finding, Severity
from forge.schema.manifest import PublishedModel


class Fetched(Struct, frozen=True):
    """A checkpoint that is held: the step that brought it, its bytes, and where it stands; nothing there may be written."""

    name: str
    size: int
    path: Path


class MadeThere(Struct, frozen=True):
    """A step that a machine of a cluster has made for this build."""

    step: str
    key: str
    node: str


class Built(Struct, frozen=True):
    """A repository after a build: which models it published, and how many bytes had to be copied instead of linked."""

    repository: Path
    models: tuple[PublishedModel, ...]
    linked: int
    copied: int
    findings: tuple[Finding, ...] = ()
    """What a check of the published models found, remarks left out."""
    nodes: tuple[MadeThere, ...] = ()
    """Who made what, where steps were spread over a cluster."""

    @property
    def broken(self) -> bool:
        """Whether a model would not load or not answer."""
        return any(each.severity is Severity.ERROR for each in self.findings)
