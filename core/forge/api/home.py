"""Where forge keeps what it makes and learns."""

from collections.abc import Mapping
from pathlib import Path


def home(environ: Mapping[str, str]) -> Path:
    """FORGE_HOME, or the platform's cache folder."""
    if named := environ.get("FORGE_HOME"):
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("forge")
