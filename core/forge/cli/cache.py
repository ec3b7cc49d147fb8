"""cache ls, verify, gc, forget; push, pull and explain stand beside (``forge.cli.cache_shared``)."""

from typing import Any

import click

from forge.cli.amounts import AGE, SHARE, SIZE
from forge.cli.cache_shared import CONFIGURED, configured, document, explain, listed, pull, push, swept
from forge.cli.output import Output, verb
from forge.cli.text import date, size, table


@click.group()
def cache() -> None:
    """Look after the store of finished artifacts."""


for command in (push, pull, explain):
    cache.add_command(command)


THERE = click.option(
    "--remote",
    is_flag=False,
    flag_value=CONFIGURED,
    metavar="[URL]",
    help="In the store that several machines share: the config file's, or the one at URL.",
)


@cache.command()
@THERE
@verb
def ls(output: Output, remote: str | None) -> None:
    """List the artifacts: what they are, how large, made when.

    A file that several hold, by hard links, counts in the size of each, and once in the sum.

    \b
    Example:
        forge cache ls
        forge cache ls --remote
    """
    if remote:
        listed(output, remote)
        return

    from forge.files.trees import size_below

    held = sorted(output.here().store.artifacts(), key=lambda artifact: artifact.manifest.made_at)
    artifacts = [{**document(a), "made_at": a.manifest.made_at, "path": str(a.path)} for a in held]
    rows = [("KEY", "STEP", "SIZE", "MADE")]
    rows += [(a.key[:12], a.manifest.provenance.step, size(a.size), date(a.manifest.made_at)) for a in held]
    total, apart = size_below(*(a.path for a in held)), sum(a.size for a in held)
    twice = f" ({size(apart)} if each had its own: a file that several hold is one on the disk)" if total < apart else ""
    output.result({"artifacts": artifacts, "size": total}, f"{table(rows)}\n{len(held)} artifacts, {size(total)}{twice}")


@cache.command()
@click.option("--some", metavar="SHARE", type=SHARE, help="Read only so much of the store, as 10%; longest unchecked first.")
@click.option("--for", "seconds", type=AGE, help="Read for so long only, as 5m; longest unchecked first.")
@click.option(
    "--repair", is_flag=True, help="Take what was rotten from the store that several machines share, where it has it."
)
@verb
def verify(output: Output, some: float | None, seconds: int | None, repair: bool) -> None:
    """Read every artifact again; one that is not what it was is removed, to be made anew. Exit code 6 if any was.

    So is each published file that has bytes of its own. A part at a time goes through the whole store when it is called again
    and again; published files that are copies wait for a call without --some and --for.

    \b
    Example:
        forge cache verify
        forge cache verify --some 10%
        forge cache verify --for 5m
        forge cache verify --repair
    """
    from forge.errors import StoreError
    from forge.store.checks import ALL, Enough

    shop = output.here()
    sharing = configured(output) if repair else None
    done = shop.integrity.verify(Enough(some or 0.0, seconds or 0) if some or seconds else ALL, sharing)
    lines = list(map(str, done.store.damages))
    lines += [f"{rot}; `forge build` of its recipe lays it anew" for rot in done.published]
    lines += [f"{key[:12]}  taken from the shared store again" for key in done.repaired]
    lines += (
        []
        if done.store.damages or done.published
        else ["every artifact is whole" if not (some or seconds) else _some(done.store)]
    )
    shown = {
        "damaged": done.store.damages,
        "published": done.published,
        "repaired": done.repaired,
        "read": {
            "artifacts": done.store.artifacts,
            "size": done.store.size,
            "held": done.store.held,
            "oldest": done.store.oldest,
        },
    }
    output.result(shown, "\n".join(lines))
    if done.store.damages or done.published:
        raise SystemExit(StoreError.exit_code)


def _some(done: Any) -> str:
    """How far a part of the store (``forge.store.checks.Again``) came."""
    read = f"{done.artifacts} of {done.held} artifacts are whole ({size(done.size)} read)"
    return f"{read}; the rest was checked since {date(done.oldest)}"


@cache.command()
@click.option("--dry-run", is_flag=True, help="Say what would go, remove nothing.")
@click.option("--older-than", type=AGE, help="Only what was not used for so long, as 30d.")
@click.option("--max-size", type=SIZE, help="Only until the store is this small, as 50GB; longest unused first.")
@click.option("--unreachable-after", type=AGE, help="Forget repositories that have been out of reach for so long, as 30d.")
@THERE
@verb
def gc(
    output: Output,
    dry_run: bool,
    older_than: int | None,
    max_size: int | None,
    unreachable_after: int | None,
    remote: str | None,
) -> None:
    """Remove artifacts that no repository, server or running build uses, and the images in Docker that only they told of.

    A repository that is not where it was (moved, not mounted, removed) keeps what it stands on until it is forgotten; each
    is named, with the reason, since when, and what it holds. With --remote: what nobody has sent or taken for so long, for all.

    \b
    Example:
        forge cache gc --older-than 30d --max-size 50GB
        forge cache gc --remote --older-than 90d
    """
    if remote:
        if older_than is None or max_size or unreachable_after:
            raise click.UsageError("--remote goes with --older-than, and with --dry-run")
        swept(output, remote, older_than, dry_run=dry_run)
        return
    upkeep = output.here().upkeep
    done = upkeep.collect(older_than=older_than, max_size=max_size, unreachable_after=unreachable_after, dry_run=dry_run)
    gone, total = done.artifacts, sum(each.size for each in done.artifacts)
    lines = [f"{each.key[:12]}  {each.step}  {size(each.size)}" for each in gone]
    lines += [f"image  {name}" for name in done.images]
    lines += [_told("would be forgotten" if dry_run else "forgotten", each) for each in done.forgotten]
    lines += [f"{_told('out of reach', each)}\n    `forge cache forget {each.place}` gives it up" for each in done.unreachable]
    lines.append(f"{'would free' if dry_run else 'freed'} {size(total)}")
    shown = {
        "removed": gone,
        "images": done.images,
        "unreachable": done.unreachable,
        "forgotten": done.forgotten,
        "size": total,
        "dry_run": dry_run,
    }
    output.result(shown, "\n".join(lines))


@cache.command()
@click.argument("repository")
@verb
def forget(output: Output, repository: str) -> None:
    """Keep nothing any more for a model repository that is out of reach: REPOSITORY is its folder or its id.

    Says what the next `forge cache gc` may free. Nothing is removed from the repository itself: back at a place, it is served
    and built into as any other, and what the store has lost by then is made again.

    \b
    Example:
        forge cache forget /mnt/models
    """
    done = output.here().store.forget(repository)
    total = sum(each.size for each in done)
    lines = [_told("forgotten", each) for each in done]
    output.result({"forgotten": done, "size": total}, "\n".join([*lines, f"`forge cache gc` may free {size(total)}"]))


def _told(what: str, one: Any) -> str:
    """One repository that is out of reach (``forge.store.gc.Unreachable``), in a line."""
    name = f"{one.place} ({one.id[:12]})" if one.id else one.place
    holds = f"{one.artifacts} artifact{'s' * (one.artifacts != 1)}, {size(one.size)}"
    kept = (
        f"it alone keeps {holds}" if one.known else f"what that was nobody knows, so all that was made before is kept: {holds}"
    )
    return f"{what}  {name}  since {date(one.since)}: {one.why}; {kept}"
