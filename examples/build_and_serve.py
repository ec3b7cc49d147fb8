"""Build a recipe, serve it, ask it, stop: the command line's work from Python.

python examples/build_and_serve.py recipes/smollm2-135m-instruct.toml "Why is the sky blue?"
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec.structs import replace

from forge import Event, Forge, ForgeError, Ports


def tell(event: Event) -> None:
    """Progress, on stderr; ``forge.cli.progress`` shows more of it."""
    if event.kind in ("held", "made", "note"):
        print(event.kind, event.step, event.text, file=sys.stderr)


def main(recipe: str, question: str, repository: Path, ports: Ports) -> None:
    forge = Forge.here(tell)
    built = forge.build([recipe], repository=repository)
    running = forge.serve(repository, ports)
    try:
        target = forge.target(built.models[0].name, repository)
        request = replace(target.request(forge.templated(target, [("user", question)])), max_tokens=48, seed=7)
        for chunk in forge.generate(target.address, request):
            print(chunk.text, end="", flush=True)
        print()
    finally:
        forge.stop(running)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        try:
            main(sys.argv[1], sys.argv[2], Path(folder) / "models", Ports(18000, 18001, 18002))
        except ForgeError as error:
            sys.exit(f"error: {error}")
