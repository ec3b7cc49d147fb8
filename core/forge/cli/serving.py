"""serve, status, logs, stop."""

import shlex

import click

from forge.cli.show import Output, table, verb

REPOSITORY = click.option(
    "--repository",
    type=click.Path(file_okay=False),
    default="model-repository",
    show_default=True,
    help="The model repository that is served.",
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
@click.option("--host", help="The address to listen on. [default: 127.0.0.1]")
@click.option("--exposed", is_flag=True, help="Listen beyond the loopback even where this Triton lets anybody load code.")
@click.option("--detach", is_flag=True, help="Return when the models are ready; `forge stop` ends the server.")
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
    host: str | None,
    exposed: bool,
    detach: bool,
    print_only: bool,
) -> None:
    """Start Triton on a model repository, or on several, and wait until every model is ready.

    A DEPLOYMENT file says itself where its repository and its ports are; options win over it.

    \b
    Example:
        forge serve --detach
        forge serve --openai-port 9000
        forge serve deployments/two-chatbots.toml
        forge serve --repository chat-models --repository code-models
    """
    from forge.ports import Ports
    from forge.workshop import Workshop

    shop = Workshop.here(output.listener)
    stated = shop.joint([deployment], deployed=True) if deployment else None
    usual = stated.ports if stated else Ports()
    http_port, grpc_port = http_port or usual.http, grpc_port or usual.grpc
    metrics_port, host = metrics_port or usual.metrics, host or usual.host
    ports = Ports(http_port, grpc_port, metrics_port, host, openai_port or usual.openai, exposed)
    places = repositories or (stated.repository if stated else "model-repository",)
    if print_only:
        from forge.adapters.fronts import line

        command, front = shop.command(places, ports), line(places, ports)
        env = "".join(f"{name}={shlex.quote(value)} " for name, value in command.env.items())
        shown = f"{env}{shlex.join(command.argv)}" + (f"\n{front}" if front else "")
        output.result({"argv": command.argv, "env": command.env, **({"openai": front} if front else {})}, shown)
        return
    running = shop.serve(places, ports, detach=detach)
    try:  # at once: a signal may come as soon as a reader knows that it is ready
        api = f"  openai http://{host}:{ports.openai}/v1" if ports.openai else ""
        where = f"http {host}:{http_port}  grpc {host}:{grpc_port}{api}  log {running.log}"
        output.result(running, f"ready: {', '.join(running.models)}\n{where}")
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


@click.command()
@verb
def status(output: Output) -> None:
    """Show the servers that are running.

    \b
    Example:
        forge status
    """
    from forge.workshop import Workshop

    servers = Workshop.here(output.listener).servers()
    rows = [("REPOSITORY", "PID", "CONTAINER", "HTTP", "GRPC", "METRICS", "OPENAI", "MODELS")]
    for each in servers:
        ports = (str(each.ports.http), str(each.ports.grpc), str(each.ports.metrics))
        api = "-" if not each.ports.openai else str(each.ports.openai) if each.front else f"{each.ports.openai} (down)"
        rows.append((each.repository, str(each.pid), each.container or "-", *ports, api, str(len(each.models))))
        rows += [(f"+ {other}", "", "", "", "", "", "", "") for other in each.others]
    strange = [f"{each.repository}: {each.stranger}" for each in servers if each.stranger]
    output.result({"servers": servers}, "\n".join([table(rows), *strange]) if servers else "no server is running")


@click.command()
@REPOSITORY
@click.option("-f", "--follow", is_flag=True, help="Go on until the server ends or Ctrl-C.")
@verb
def logs(output: Output, repository: str, follow: bool) -> None:
    """Show the log of the server on a model repository.

    \b
    Example:
        forge logs -f
    """
    from forge.workshop import Workshop

    for line in Workshop.here(output.listener).logs(repository, follow=follow):
        if output.as_json:
            output.line({"line": line})
        else:
            click.echo(line)


@click.command()
@REPOSITORY
@click.option("--all", "everything", is_flag=True, help="Stop every server of this workshop.")
@verb
def stop(output: Output, repository: str, everything: bool) -> None:
    """Stop the server on a model repository; nothing of it stays behind.

    \b
    Example:
        forge stop
    """
    from forge.workshop import Workshop

    shop = Workshop.here(output.listener)
    servers = shop.servers() if everything else (shop.server(repository),)
    for running in servers:
        shop.stop(running)
    stopped = [place for running in servers for place in running.repositories]
    output.result({"stopped": stopped}, "\n".join(f"stopped {place}" for place in stopped) or "no server is running")


@click.command()
@REPOSITORY
@click.argument("model", required=False)
@verb
def reload(output: Output, repository: str, model: str | None) -> None:
    """Have a running server take in what has changed in its repositories, or only one recipe's models.

    Each model goes on answering until its new version is ready. `forge build`, `add` and `remove` do this by themselves.

    \b
    Example:
        forge reload
    """
    from forge.workshop import Workshop

    running = Workshop.here(output.listener).reload(repository, model)
    output.result(running, f"ready: {', '.join(running.models) or 'no model'}")
