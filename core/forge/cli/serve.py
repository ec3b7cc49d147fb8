"""serve, status, logs, stop."""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click

from forge.cli.amounts import EVERY
from forge.cli.output import Output, verb
from forge.cli.text import shown, table
from forge.errors import ServerError

REPOSITORY = click.option(
    "--repository",
    type=click.Path(file_okay=False),
    help="The model repository that is served. [default: model-repository]",
)
REPOSITORIES = click.option(
    "--repository",
    "repositories",
    type=click.Path(file_okay=False),
    multiple=True,
    help="The model repository to serve; given again, one more in the same server. [default: model-repository]",
)
PORT = click.IntRange(1, 65535)


@click.command()
@click.argument("deployment", required=False, type=click.Path())
@REPOSITORIES
@click.option("--http-port", type=PORT, help="[default: 8000]")
@click.option("--grpc-port", type=PORT, help="[default: 8001]")
@click.option("--metrics-port", type=PORT, help="[default: 8002]")
@click.option("--openai-port", type=PORT, help="Serve OpenAI's API too, at this port.")
@click.option("--ui", is_flag=True, help="Serve the page to look at too, at the OpenAI port. [default port: 9000]")
@click.option("--api-key-file", type=click.Path(dir_okay=False), help="Ask for the key in this file at the OpenAI port.")
@click.option("--host", help="The address to listen on, IPv4 or IPv6, or a name of it. [default: 127.0.0.1]")
@click.option("--exposed", is_flag=True, help="Serve also where model control cannot be kept from others (docs/security.md).")
@click.option("--detach", is_flag=True, help="Return when the models are ready; `forge stop` ends the server.")
@click.option("--room-for-more", is_flag=True, help="Serve one engine so that others can be added while it runs.")
@click.option("--no-restart", is_flag=True, help="Leave models that die, and Triton itself, as they are.")
@click.option(
    "--verify",
    type=click.Choice(("always", "changed", "never")),
    default="changed",
    show_default=True,
    help="Which published files are read before, and held to what was built: all, or those written to since the last time.",
)
@click.option(
    "--scrub",
    type=EVERY,
    default="1d",
    show_default=True,
    metavar="AGE|off",
    help="While it serves, read each file again after so long, on 5 % of a core at most; `forge status` names rot.",
)
@click.option("--print", "print_only", is_flag=True, help="Show the exact command line and start nothing.")
@verb
def serve(
    output: Output,
    deployment: str | None,
    repositories: tuple[str, ...],
    http_port: int | None,
    grpc_port: int | None,
    metrics_port: int | None,
    openai_port: int | None,
    ui: bool,
    api_key_file: str | None,
    host: str | None,
    exposed: bool,
    detach: bool,
    room_for_more: bool,
    no_restart: bool,
    verify: Any,
    scrub: float,
    print_only: bool,
) -> None:
    """Start Triton on one model repository, or on several.

    It is waited for until every model is ready. A DEPLOYMENT file says itself where its repository and its ports are; options
    and FORGE_PORTS_* win over it. A folder in its place is a repository.

    \b
    Example:
        forge serve --detach
        forge serve --openai-port 9000
        forge serve --ui
        forge serve deployments/two-chatbots.toml
        forge serve --repository chat-models --repository code-models
    """
    from forge import settings
    from forge.schema.values import Ports
    from forge.serve.openai.sidecar import PAGE_PORT, page

    shop = output.here()
    if deployment and Path(deployment).is_dir():
        repositories, deployment = (*repositories, deployment), None
    stated = shop.joint([deployment], deployed=True) if deployment else None
    usual = settings.ports(shop.settings.ports, stated.stated.ports.stated if stated else {}, os.environ)
    http_port, grpc_port = http_port or usual.http, grpc_port or usual.grpc
    metrics_port, host = metrics_port or usual.metrics, host or usual.host
    door = openai_port or usual.openai or (PAGE_PORT if ui or api_key_file else 0)
    ports = Ports(http_port, grpc_port, metrics_port, host, door, page=ui, key_file=api_key_file or "", exposed=exposed)
    places = repositories or (stated.repository if stated else shop.settings.repository,)
    if print_only:
        _print(output, shop.command(places, ports, room=room_for_more), places, ports)
        return
    running = shop.serve(places, ports, detach=detach, restart=not no_restart, room=room_for_more, verify=verify, scrub=scrub)
    try:  # at once: a signal may come as soon as a reader knows that it is ready
        ports = running.ports
        api = f"  openai http://{ports.at(ports.openai)}/v1" if ports.openai else ""
        where = f"http {ports.at(ports.http)}  grpc {ports.at(ports.grpc)}{api}  log {running.log}"
        look = f"\npage {page(running.ports)}" if page(running.ports) else ""
        output.result(running, f"ready: {', '.join(running.models)}\n{where}{look}")
        if not detach:
            output.say("Ctrl-C stops it")
            shop.wait(running)
    except KeyboardInterrupt:
        if detach:
            raise
        output.say("stopping")
    finally:
        if not detach:
            shop.stop(running)


def _print(output: Output, command: Any, places: Any, ports: Any) -> None:
    from forge.serve.openai.sidecar import OWN_KEY, draws, line
    from forge.serve.port_holders import addressed

    front = line(places, addressed(ports))
    env = "".join(f"{name}={shlex.quote(value)} " for name, value in command.env.items())
    shown = f"{env}{shlex.join(command.argv)}" + (f"\n{front}" if front else "")
    output.result({"argv": command.argv, "env": command.env, **({"openai": front} if front else {})}, shown)
    if draws(ports):
        made = f"(umask 077; openssl rand -hex 24 > {OWN_KEY})"
        output.say(f"`forge serve` draws a key at each start; for the line of the OpenAI port make one: {made}")


@click.command()
@click.option("--no-ask", is_flag=True, help="Only show what runs: every model is asked for one token otherwise.")
@click.option("--deadline", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, metavar="SECONDS")
@verb
def status(output: Output, no_ask: bool, deadline: float) -> None:
    """Show the servers that are running.

    Every model is asked whether it answers within a deadline; exit code 9 when one does not, and when another program has a
    server's port. So does a published file that was found rotten, by the scrub or before: it is named until it is fixed.

    \b
    Example:
        forge status
    """
    from forge.serve.restart import alone, crashes_of, unwatched, without

    shop = output.here()
    servers = shop.servers()
    states = () if no_ask else shop.care.states([each for each in servers if not (each.stranger or each.down)], deadline)
    rows = [("REPOSITORY", "PID", "CONTAINER", "HTTP", "GRPC", "METRICS", "OPENAI", "MODELS")]
    for each in servers:
        ports = (str(each.ports.http), str(each.ports.grpc), str(each.ports.metrics))
        api = "-" if not each.ports.openai else str(each.ports.openai) if each.front else f"{each.ports.openai} (down)"
        own = [state for state in states if state.repository == each.repository]
        models = f"{sum(state.answers for state in own)} of {len(own)} answer" if own else str(len(each.models))
        rows.append((each.repository, str(each.pid), each.container or "-", *ports, api, models))
        rows += [(f"+ {other}", "", "", "", "", "", "", "") for other in each.others]
    said = [f"{each.repository}: {told}" for each in servers if (told := each.down or each.stranger)]
    said += [f"{each.repository}: {crashes_of(each)}{without(each)}" for each in servers if each.crashes and not each.down]
    said += [f"{each.repository}: {alone(each)}" for each in servers if unwatched(each)]
    said += [told for state in states if (told := state.said(time.time()))]
    rotten = shop.integrity.rotten(servers)
    said += [f"ROTTEN: {rot}; `forge build` of its recipe fixes it" for rot in rotten]
    shown = "\n".join([table(rows), *said])
    ended = shop.ended()
    over = [f"{place}: {why}; `forge serve` starts it" for place, why in ended.items()]
    parts = {"models": states, "rotten": rotten, "ended": ended}
    document = {"servers": servers, **{name: part for name, part in parts.items() if part}}
    output.result(document, "\n".join([shown if servers else "no server is running", *over]))
    if rotten or any(each.stranger or each.down for each in servers) or not all(state.answers for state in states):
        sys.exit(ServerError.exit_code)


@click.command()
@REPOSITORY
@click.option("-f", "--follow", is_flag=True, help="Go on until the server ends or Ctrl-C.")
@click.option("-n", "--tail", type=click.IntRange(0), metavar="LINES", help="Only so many lines from the end. [default: all]")
@verb
def logs(output: Output, repository: str | None, follow: bool, tail: int | None) -> None:
    """Show the log of a repository's server, or of its last one.

    \b
    Example:
        forge logs -f -n 20
    """
    for line in output.here().logs(repository, follow=follow, tail=tail):
        if output.as_json:
            output.line({"line": line})
        else:
            click.echo(shown(line))


@click.command()
@click.argument("folder", required=False, type=click.Path())
@REPOSITORY
@click.option("--all", "everything", is_flag=True, help="Stop every server of this FORGE_HOME.")
@verb
def stop(output: Output, folder: str | None, repository: str | None, everything: bool) -> None:
    """Stop the server on a model repository.

    Nothing of it stays behind. FOLDER is the same as --repository; a deployment's file in its place says the folder.

    \b
    Example:
        forge stop
        forge stop chat-models
    """
    if sum((bool(folder), bool(repository), everything)) > 1:
        raise click.UsageError("FOLDER, --repository and --all say each what to stop: say one of them")
    shop = output.here()
    if folder and Path(folder).is_file():
        folder = str(shop.joint([folder], deployed=True).repository)
    servers = shop.servers()
    if not (everything or servers):
        raise ServerError(
            "no server is running", where=folder or repository or "", hint=f"FORGE_HOME {shop.home} has none to stop"
        )
    servers = servers if everything else (shop.server(folder or repository),)
    for running in servers:
        shop.stop(running)
    stopped = [place for running in servers for place in running.repositories]
    output.result({"stopped": stopped}, "\n".join(f"stopped {place}" for place in stopped) or "no server is running")


@click.command()
@REPOSITORY
@click.argument("model", required=False)
@verb
def reload(output: Output, repository: str | None, model: str | None) -> None:
    """Have a running server take in what has changed.

    All of its repositories, or only one recipe's models. Each model goes on answering until its new version is ready. Then
    every model is asked for one token, and those that do not answer are started anew. `forge build`, `add` and `remove` do
    this by themselves.

    \b
    Example:
        forge reload
    """
    running = output.here().reload(repository, model)
    output.result(running, f"ready: {', '.join(running.models) or 'no model'}")
