"""Build a recipe, serve it, ask it, stop: the command line's work from Python.

python examples/build_and_serve.py recipes/smollm2-135m-instruct.toml "Why is the sky blue?"
"""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from forge.api.forge import Workshop
from forge.errors import ForgeError
from forge.events import Event
from forge.schema.values import Ports


def tell(event: Event) -> None:
    """Progress, on stderr; ``forge.cli.progress`` shows more of it."""
    if event.kind in ("held", "made", "note"):
        print(event.kind, event.step, event.text, file=sys.stderr)


def main(recipe: str, question: str, repository: Path, ports: Ports) -> None:
    shop = Workshop.here(tell)
    built = shop.build([recipe], repository=repository)
    running = shop.serve(repository, ports)
    try:
        target = shop.target(built.models[0].name, repository)
        request = replace(target.request(shop.templated(target, [("user", question)])), max_tokens=48, seed=7)
        for chunk in shop.generate(target.address, request):
            print(chunk.text, end="", flush=True)
        print()
    finally:
        shop.stop(running)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        try:
            main(sys.argv[1], sys.argv[2], Path(folder) / "models", Ports(18000, 18001, 18002))
        except ForgeError as error:
            sys.exit(f"error: {error}")
