"""Triton's command line, wherever it runs: as a process of this machine or in a container. Pure."""

from msgspec import Struct

from forge.machine.unlisted import SECRET
from forge.schema.values import Ports
from forge.serve.server_types import Launch

EXIT_TIMEOUT = 10
"""Seconds that Triton gives running requests when it is asked to finish."""
HEADER = "forge-control"
"""Of a request over HTTP that may load and unload models; over gRPC it is ``triton-grpc-protocol-forge-control``."""
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")
"""Triton's names for what runs code, maps memory and writes files. ``model-config`` stays open: the bls of newer TensorRT-LLM
asks its own server for it."""
_PYTHON = ("python",)
_OWN = (*_PYTHON, "tensorrtllm", "vllm")
"""Backends that have stubs, which share memory with the server; forge's own have, TensorRT-LLM's has not."""


class ServerPlace(Struct, frozen=True):
    """Where one server sits: its program, the repositories and the addresses as it sees them itself.

    ``marker`` begins the names of its shared-memory regions; ``backends`` is empty for Triton's own folder; ``gpus`` how many
    GPUs it sees, as far as anybody knows; ``before`` starts the program (see ``forge.machine.unlisted``); ``nonce`` is its id.
    """

    program: str
    repositories: tuple[str, ...]
    ports: Ports
    marker: str
    backends: str = ""
    gpus: int = 0
    before: tuple[str, ...] = ()
    nonce: str = ""


def arguments(launch: Launch, place: ServerPlace) -> tuple[str, ...]:
    """The command line. MPI starts a server for each part of an engine, or one that starts the rest, as NVIDIA's launcher does
    (scripts/launch_triton_server.py): the other parts' servers load nothing but the engine and never come to listen.
    """
    if launch.orchestrated:
        return ("mpirun", "--allow-run-as-root", "-n", "1", *_rank(launch, place, 0))
    if launch.world == 1:
        return _rank(launch, place, 0)
    words = ["mpirun", "--allow-run-as-root"]
    for rank in range(launch.world):
        words += [*([":"] if rank else []), "-n", "1", *_rank(launch, place, rank)]
    return tuple(words)


def variables(launch: Launch) -> dict[str, str]:
    """What the environment has to say beside it."""
    return {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "1"} if launch.orchestrated else {}


def _rank(launch: Launch, place: ServerPlace, rank: int) -> tuple[str, ...]:
    models = launch.engines or launch.first if rank else launch.first
    prefix = f"{place.marker}-{rank}-" if launch.world > 1 else place.marker
    return (
        *place.before,
        place.program,
        *([f"--id={place.nonce}"] if place.nonce else []),
        *(f"--model-repository={repository}" for repository in place.repositories),
        *([f"--backend-directory={place.backends}"] if place.backends else []),
        "--model-control-mode=explicit",  # _assets is no model: polling the repository would refuse to start
        *(f"--load-model={model}" for model in models),
        *_addresses(place.ports),
        *(() if launch.unrestricted else _restrictions()),
        # forge writes whole configs, llmapi's too (decoupled and max_batch_size stand in config.pbtxt): nothing to complete.
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_TIMEOUT}",
        *(() if place.gpus else ("--allow-gpu-metrics=false",)),
        *((*_unpooled(place), "--model-load-thread-count=1") if launch.orchestrated else ()),
        *(f"--backend-config={backend},shm-region-prefix-name={prefix}" for backend in (_OWN if place.backends else _PYTHON)),
    )


def _addresses(ports: Ports) -> tuple[str, ...]:
    """All three: Triton listens on every interface unless told otherwise.

    An IPv6 address is written in two ways: for libevhtp, which its HTTP stands on, and for gRPC.
    """
    sixth = ":" in ports.host
    http, grpc = (f"ipv6:{ports.host}", f"[{ports.host}]") if sixth else (ports.host, ports.host)
    named = {"http": (http, ports.http), "grpc": (grpc, ports.grpc), "metrics": (http, ports.metrics)}
    return tuple(
        option for name, (host, port) in named.items() for option in (f"--{name}-address={host}", f"--{name}-port={port}")
    )


def _restrictions() -> tuple[str, ...]:
    """Triton 2.40 and later (23.11) knows both options: every release of ``forge.trtllm.image_table`` does."""
    return tuple(
        f"--{option}={','.join(RESTRICTED)}:{HEADER}={SECRET}" for option in ("http-restricted-api", "grpc-restricted-protocol")
    )


def _unpooled(place: ServerPlace) -> tuple[str, ...]:
    """Keeps the orchestrating server off the GPUs: those that it starts need them, and CUDA does not survive being forked."""
    pools = (f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(place.gpus))
    return ("--pinned-memory-pool-byte-size=0", "--enable-peer-access=false", *pools)
