"""export."""

from pathlib import Path
from shlex import quote
from typing import Any

import click

from forge.cli.output import Output, verb
from forge.cli.param_types import RECIPE

BUILD, SERVE = "build.yaml", "serve.yaml"


@click.group()
def export() -> None:
    """Write what other tools take: a deployment for Kubernetes."""


@export.command()
@click.argument("what", metavar="DEPLOYMENT", type=RECIPE)
@click.option(
    "-o", "--output", "into", type=click.Path(file_okay=False), help=f"Write {BUILD} and {SERVE} there. [default: print]"
)
@click.option("--name", help="Of all objects. [default: the file's]")
@click.option("--namespace", default="", help="[default: the one that kubectl applies to]")
@click.option("--image", default="", help="Serve and build in this image. [default: NVIDIA's of the recipes, or Python's]")
@click.option("--install", help="What pip installs where the image has no forge; a requirement. [default: this forge]")
@click.option("--gpu", default="", metavar="PRODUCT", help="Nodes with this nvidia.com/gpu.product alone.")
@click.option("--claim", default="", metavar="NAME", help="Keep store and models in this volume claim. [default: in the pod]")
@click.option("--claim-size", default="", metavar="SIZE", help="Make that claim, of this size: 200Gi.")
@click.option("--remote", default=None, metavar="URL", help="The store that the pods share. [default: the config file's]")
@click.option("--secret", default="forge", help="The Secret whose keys become variables: HF_TOKEN, AWS_... [default: forge]")
@click.option("--pull-secret", default="", help="The Secret with which images are pulled.")
@click.option("--replicas", type=click.IntRange(1), default=1, help="Servers. [default: 1]")
@click.option("--kserve", is_flag=True, help="Serve through KServe: a ServingRuntime and an InferenceService.")
@verb
def kubernetes(output: Output, what: str, into: str | None, remote: str | None, kserve: bool, **said: Any) -> None:
    """Write DEPLOYMENT, or one recipe, as Kubernetes takes it.

    Jobs build on the cluster's GPUs into a shared store or a volume claim; a server takes what it serves from there, and makes
    what is missing. What is secret stays in a Secret of yours. docs/kubernetes.md says how they are applied.

    \b
    Example:
        forge export kubernetes deployments/two-chatbots.toml --remote s3://team/forge -o manifests
    """
    from forge.api.export import EXITS, exported
    from forge.kubernetes import objects
    from forge.kubernetes.yaml_text import text

    shop = output.here(remote=remote)
    deployment, site = exported(shop, what, said.pop("name")), _site(shop.settings.remote.url, **said)
    building, serving = objects.manifests(deployment, site, EXITS, kserve=kserve)
    if not (site.remote or site.claim):
        output.say("no shared store and no claim is named: each server builds for itself, and again in each new pod")
    if into is None:
        output.result({"objects": [*building, *serving]}, text([*building, *serving]).rstrip("\n"))
        return
    place = Path(into)
    place.mkdir(parents=True, exist_ok=True)
    for file, listed in ((BUILD, building), (SERVE, serving)):
        (place / file).write_text(text(listed), encoding="utf-8")
        output.say(f"{place / file}: {', '.join(str(each['kind']) for each in listed)}")
    output.result({"files": [str(place / BUILD), str(place / SERVE)]}, _next(place, building, site.namespace))


def _site(
    remote: str, install: str | None, claim_size: str, namespace: str, image: str, gpu: str, claim: str, **others: Any
) -> Any:
    from importlib.metadata import version

    from forge.kubernetes.pod import Site

    if claim_size and not claim:
        raise click.UsageError("--claim-size is that of a claim: give it a name with --claim")
    if remote.startswith("file:"):
        raise click.UsageError("a folder is another one in each pod: name a store that pods share, or --claim")
    forge = install or f"triton-forge[openai,remote]=={version('triton-forge')}"
    try:
        return Site(forge, namespace, image, gpu, claim, claim_size, "" if remote == "none" else remote, **others)
    except ValueError as error:
        raise click.UsageError(f"--{error}") from None


def _next(place: Path, building: Any, namespace: str) -> str:
    """What is typed then."""
    from forge.kubernetes.objects import MARK

    there = f" -n {namespace}" if namespace else ""
    apply = f"kubectl apply --server-side{there} -f"
    marks = {each["metadata"]["labels"].get(MARK) for each in building} - {None}
    waited = "".join(f"kubectl wait{there} job -l {MARK}={mark} --for=condition=complete --timeout=4h\n" for mark in marks)
    return f"{apply} {quote(str(place / BUILD))}\n{waited}{apply} {quote(str(place / SERVE))}"
