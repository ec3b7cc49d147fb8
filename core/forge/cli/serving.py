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
PORT = click.IntRange(1, 65535)


@click.command()
@REPOSITORY
@click.option("--http-port", type=PORT, default=8000, show_default=True)
@click.option("--grpc-port", type=PORT, default=8001, show_default=True)
@click.option("--metrics-port", type=PORT, default=8002, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--detach", is_flag=True, help="Return when the models are ready; `forge stop` ends the server.")
@click.option("--print", "print_only", is_flag=True, help="Show the exact command line and start nothing.")
@verb
def serve(
    output: Output,
    repository: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    host: str,
    detach: bool,
    print_only: bool,
) -> None:
    """Start Triton on a model repository and wait until every model is ready.

    \b
    Example:
        forge serve --detach
    """
    from forge.ports import Ports
    from forge.workshop import Workshop

    shop = Workshop.here(output.listener)
    ports = Ports(http_port, grpc_port, metrics_port, host)
    if print_only:
        command = shop.command(repository, ports)
        env = " ".join(f"{name}={shlex.quote(value)}" for name, value in command.env.items())
        output.result({"argv": command.argv, "env": command.env}, f"{env} {shlex.join(command.argv)}")
        return
    running = shop.serve(repository, ports, detach=detach)
    ready = f"ready: {', '.join(running.models)}\nhttp {host}:{http_port}  grpc {host}:{grpc_port}  log {running.log}"
    output.result(running, ready)
    if detach:
        return
    output.say("Ctrl-C stops it")
    try:
        shop.wait(running)
    except KeyboardInterrupt:
        output.say("stopping")
    finally:
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
    rows = [("REPOSITORY", "PID", "HTTP", "GRPC", "METRICS", "MODELS")]
    rows += [
        (r.repository, str(r.pid), str(r.ports.http), str(r.ports.grpc), str(r.ports.metrics), str(len(r.models)))
        for r in servers
    ]
    output.result({"servers": servers}, table(rows) if servers else "no server is running")


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
    stopped = [running.repository for running in servers]
    output.result({"stopped": stopped}, "\n".join(f"stopped {place}" for place in stopped) or "no server is running")
