"""cache push, pull and explain, and what ls and gc say of a store that several machines share."""

from collections.abc import Sequence
from typing import Any

import click

from forge.cli.output import Output, verb
from forge.cli.text import date, size, table

CONFIGURED = "configured"
"""What stands for the address in the config file."""
KEYS = click.argument("keys", nargs=-1)
REMOTE = click.option("--remote", metavar="URL", help="The store that several machines share. [default: the config file's]")


@click.command()
@KEYS
@REMOTE
@click.option("--again", is_flag=True, help="Send all bytes, also of files that are there: fixes rotten ones.")
@verb
def push(output: Output, keys: tuple[str, ...], remote: str | None, again: bool) -> None:
    """Send artifacts to the store that several machines share: those of KEYS (their beginnings do), or all.

    Only of the kinds that the config file allows (docs/remote.md). Files that are there already are not sent again.

    \b
    Example:
        forge cache push
        forge cache push edd1e1334e78
    """
    from forge.remote.shared import kind

    shop, sharing = _shop(output, remote, writes=True)
    held = {one.key: one for one in shop.store.artifacts() if kind(one.manifest.provenance) in sharing.kinds}
    named = (
        _named(keys, held, f"no artifact of a kind that is shared ({', '.join(sharing.kinds)}) has this key") if keys else held
    )
    done = [sharing.shared.push(held[key], again=again) for key in named]
    rows = [("KEY", "STEP", "SIZE", "SENT")]
    rows += [(one.key[:12], one.step, size(one.size), _sent(one)) for one in done]
    output.result({"pushed": done}, table(rows) if done else "there is nothing here that could be shared")


@click.command()
@click.argument("keys", nargs=-1, required=True)
@REMOTE
@verb
def pull(output: Output, keys: tuple[str, ...], remote: str | None) -> None:
    """Take the artifacts of KEYS (their beginnings do) out of the store that several machines share, each file verified.

    \b
    Example:
        forge cache pull edd1e1334e78
    """
    shop, sharing = _shop(output, remote)
    there = {one.key for one in sharing.shared.written()}
    wanted = _named(keys, there, "the shared store has no artifact of this key")
    found = [shop.store.find(key) or sharing.shared.pull(key, shop.store) for key in wanted]
    taken = [one for one in found if one]
    rows = [("KEY", "STEP", "SIZE"), *((one.key[:12], one.manifest.provenance.step, size(one.size)) for one in taken)]
    pulled = [{**document(one), "path": str(one.path)} for one in taken]
    output.result({"pulled": pulled}, table(rows))


@click.command()
@click.argument("key")
@REMOTE
@verb
def explain(output: Output, key: str, remote: str | None) -> None:
    """Say who made the artifact of KEY (its beginning does), when, from what, and where it is.

    \b
    Example:
        forge cache explain edd1e1334e78
    """
    from forge.remote.explain import explained

    shop = output.here(remote=remote)
    found = explained(key, shop.store, shop.sharing.shared if shop.sharing else None, shop.notary)
    output.result(found, _told(found))


def configured(output: Output) -> Any:
    """The shared store of the config file (``forge.build.supply.Sharing``); RemoteError where it names none."""
    return _shop(output, None)[1]


def listed(output: Output, remote: str) -> None:
    """What stands in the shared store."""
    _, sharing = _shop(output, remote)
    found = sharing.shared.records()
    rows = [("KEY", "STEP", "SIZE", "USED", "BY")]
    rows += [(one.key[:12], _step(one), size(one.size), date(one.used), _by(one)) for one in found]
    total = sum(one.size for one in found)
    artifacts = [{**document(one), "used_at": one.used, "by": one.by, "problem": one.problem} for one in found]
    text = f"{table(rows)}\n{len(found)} artifacts, {size(total)}, in {sharing.shared.name}"
    output.result({"remote": sharing.shared.name, "artifacts": artifacts, "size": total}, text)


def swept(output: Output, remote: str, older_than: int, *, dry_run: bool) -> None:
    """Remove from the shared store what nobody has sent or taken for so long."""
    _, sharing = _shop(output, remote, writes=True)
    done = sharing.shared.collect(older_than, dry_run=dry_run)
    lines = [f"{one.key[:12]}  {_step(one)}  {size(one.size)}" for one in done.removed]
    lines.append(f"{'would free' if dry_run else 'freed'} {size(done.size)} in {sharing.shared.name}")
    removed = [document(one) for one in done.removed]
    shown = {"remote": sharing.shared.name, "removed": removed, "size": done.size, "dry_run": dry_run}
    output.result(shown, "\n".join(lines))


def _shop(output: Output, remote: str | None, *, writes: bool = False) -> tuple[Any, Any]:
    """A Forge and its ``forge.build.supply.Sharing``; RemoteError where no shared store is named, or it may only be read."""
    from forge.remote.place import RemoteError

    shop = output.here(remote=None if remote == CONFIGURED else remote)
    if shop.sharing is None:
        hint = "name one: --remote URL, FORGE_REMOTE_URL, or [remote] url in the config file (docs/remote.md)"
        raise RemoteError("no shared store is named", hint=hint)
    if writes and not shop.sharing.writes:
        hint = 'access = "read-write" under [remote] in the config file, or FORGE_REMOTE_ACCESS=read-write, allows it'
        raise RemoteError("this shared store may only be read from here", where=shop.sharing.shared.name, hint=hint)
    return shop, shop.sharing


def _named(keys: Sequence[str], there: Any, what: str) -> list[str]:
    """The whole keys that are meant, each once."""
    from forge.remote.explain import meant

    return list(dict.fromkeys(meant(key, there, what, "forge cache ls --remote") for key in keys))


def _sent(one: Any) -> str:
    if one.other:
        return f"no: {one.other} made another result"
    return "was there" if one.there else size(one.sent)


def _step(one: Any) -> str:
    return one.manifest.provenance.step if one.manifest else f"DAMAGED: {one.problem}"


def _by(one: Any) -> str:
    return f"{one.by.user}@{one.by.host}" if one.by else "?"


def document(one: Any) -> dict[str, object]:
    """An artifact, here or in the shared store."""
    made = one.manifest.provenance if one.manifest else None
    return {"key": one.key, "step": made and made.step, "action": made and made.action, "size": one.size}


def _told(found: Any) -> str:
    """An explanation (``forge.remote.explain.Explanation``) in lines."""
    lines = [
        f"{found.step} ({found.action}), {size(found.size)}",
        f"key      {found.key}",
        f"made     {date(found.made_at)} in {found.seconds:.1f} s, by {found.by or 'this machine'}",
        f"local    {found.local or 'no'}",
        f"remote   {found.remote}",
        f"signed   {found.signed}",
    ]
    lines += [f"from     {name}: {need.step or '?'}  {need.key[:12]}  {need.where}" for name, need in found.needs.items()]
    return "\n".join([*lines, *(f"  {label} = {value}" for label, value in found.inputs.items())])
