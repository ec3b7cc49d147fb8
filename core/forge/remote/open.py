"""The place at an address."""

from forge.remote.place import Place


def place(url: str, deadline: float) -> Place:
    """Where ``url`` leads; RemoteError where what that takes is not installed."""
    if url.startswith("oci://"):
        from forge.remote.registry import Registry

        return Registry(url, deadline)
    from forge.remote.object_store import Objects

    return Objects(url, deadline)
