"""Two models in one repository and one server: what deployments/two-chatbots.toml does, from Python.

python examples/deploy_two_models.py "Tell me of a dragon."
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec.structs import replace

from forge import Event, Forge, ForgeError, Ports

DEPLOYMENT = Path(__file__).parent.parent / "deployments" / "two-chatbots.toml"


def tell(event: Event) -> None:
    """Progress, on stderr; ``forge.cli.progress`` shows more of it."""
    if event.kind in ("held", "made", "note", "failed"):
        print(event.kind, event.step, event.text, file=sys.stderr)


def main(question: str, repository: Path, ports: Ports | None = None) -> None:
    """Build and serve the deployment, but for its repository and its ports, and ask each of its models once."""
    forge = Forge.here(tell, jobs=2)
    built = forge.build([DEPLOYMENT], repository=repository)
    running = forge.serve(repository, ports or forge.joint([DEPLOYMENT]).ports)
    try:
        for model in built.models:
            target = forge.target(model.name, repository)
            request = replace(target.request(forge.templated(target, [("user", question)])), max_tokens=32, seed=7)
            answer = "".join(chunk.text for chunk in forge.generate(target.address, request))
            print(f"{model.name}: {answer}")
    finally:
        forge.stop(running)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        try:
            main(sys.argv[1], Path(folder) / "models")
        except ForgeError as error:
            sys.exit(f"error: {error}")
