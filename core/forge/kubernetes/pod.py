"""The pod that builds and the pod that serves: one image, one folder for all that forge keeps, one set of variables. Pure.

A pod does without a Docker of its own: forge runs inside the image (docs/inside.md). What is secret stands in Secrets that the
cluster's keeper makes; nothing here holds a value of one.
"""

import re
from collections.abc import Iterable, Mapping
from shlex import quote

from msgspec import Struct

from forge.files import texts
from forge.schema.spelling import opens
from forge.schema.values import RuntimeKind

Object = dict[str, object]
"""A part of a manifest, as YAML has it."""

FILES = "/etc/forge"
"""Where a pod sees the deployment, its recipes and their locks."""
KEPT = "/var/lib/forge"
"""The store and the model repository, on one filesystem: a published file is a link into the store."""
REPOSITORY = f"{KEPT}/models"
HTTP, GRPC, METRICS, OPENAI = 8000, 8001, 8002, 9000
SHARED_MEMORY = 2 << 30
"""Bytes of /dev/shm for each model of a pod, as NVIDIA's containers are run with: Python models and NCCL want them."""
PLAIN_IMAGE = "python:3.12"
"""For runtimes that serve from an environment that forge makes: Debian with Python, and a compiler for vLLM's kernels."""
READY = "/v2/health/ready"
LIVE = "/v2/health/live"
_STARTING = 180
"""Periods of 10 seconds that a server may take to load its models."""


class Model(Struct, frozen=True):
    """One recipe of a deployment, by what a cluster has to know. ``gpus`` are those of one server, ``host`` is bytes, 0 where
    nobody knows; ``recipe`` is the path of its file below FILES."""

    name: str
    recipe: str
    runtime: RuntimeKind
    image: str
    gpus: int
    host: int = 0
    building: int = 0
    """Bytes of the machine's memory that its build takes, as ``host``."""


class Exported(Struct, frozen=True):
    """A deployment with the texts that it stands on: ``files`` by their paths below FILES, ``file`` the one that is built."""

    name: str
    file: str
    files: Mapping[str, str]
    models: tuple[Model, ...]

    @property
    def gpus(self) -> int:
        """GPUs of the server: its models share them."""
        return max((model.gpus for model in self.models), default=0)

    @property
    def image(self) -> str:
        """The image that its models are served in."""
        return next((model.image for model in self.models if model.image), PLAIN_IMAGE)


_ODD = re.compile(r"[^-._a-zA-Z0-9]+")


class Site(Struct, frozen=True):
    """What is true of the cluster. ``gpu`` is a product as NVIDIA's feature discovery labels nodes, ``claim`` a volume claim
    that keeps what is made, ``size`` its size where it is to be made, ``secret`` the Secret whose keys are variables."""

    install: str
    """What pip installs where the image has no forge of its own."""
    namespace: str = ""
    image: str = ""
    gpu: str = ""
    claim: str = ""
    size: str = ""
    remote: str = ""
    secret: str = "forge"  # noqa: S105 - the name of one
    pull_secret: str = ""
    replicas: int = 1

    def __post_init__(self) -> None:
        """ValueError for a word that Kubernetes would not take where it stands."""
        for told, form in texts.shipped("forge.kubernetes", "site.toml", dict[str, str]).items():
            said = str(getattr(self, told))
            if said and not re.fullmatch(form, said):
                raise ValueError(f"{told.replace('_', '-')} cannot be {said!r}")
        if opens(self.install):
            raise ValueError("install has a password or a token in it, which each pod's manifest would show")
        if not self.secret:
            raise ValueError("secret has to be a name")


class Pods(Struct, frozen=True):
    """The pods of one deployment on one site."""

    exported: Exported
    site: Site
    mark: str
    """Changes with the files, and with what the site says of pods: whoever serves the old ones is started anew."""

    def building(self, model: Model | None) -> Object:
        """The pod of a job: it builds ``model`` and keeps it for others, or the whole deployment into the claim."""
        of = (model,) if model else self.exported.models
        words = f"build {quote(f'{FILES}/{model.recipe}')} --until build" if model else self._built
        container = self._container("build", words, _asked(of, build=True), writes=True)
        return self._pod([container], restart="Never")

    def serving(self) -> Object:
        """The pod of the server: what it serves is taken out of the shared store, or made, before it starts."""
        pod = self._pod([self.server("serve")], restart="Always")
        return {"initContainers": [self.models()], **pod, "terminationGracePeriodSeconds": 120}

    def models(self) -> Object:
        """The container that lays out the model repository: in seconds where all of it is held."""
        return self._container("models", self._built, _asked(self.exported.models, build=True), writes=False)

    def server(self, name: str) -> Object:
        """The container of Triton, with the one process of forge that looks after it."""
        words = (
            f"serve --repository {REPOSITORY} --host 0.0.0.0 --http-port {HTTP} --grpc-port {GRPC} --metrics-port {METRICS}"
            f" --openai-port {OPENAI}"
        )
        container = self._container(name, words, _asked(self.exported.models, build=False), writes=False)
        named = {"http": HTTP, "grpc": GRPC, "metrics": METRICS, "openai": OPENAI}
        probe = {"httpGet": {"path": READY, "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 5}
        alive = {"httpGet": {"path": LIVE, "port": "http"}, "periodSeconds": 20, "timeoutSeconds": 10, "failureThreshold": 6}
        return {
            **container,
            "ports": [{"name": each, "containerPort": port} for each, port in named.items()],
            "startupProbe": {**probe, "failureThreshold": _STARTING},
            "readinessProbe": probe,
            "livenessProbe": alive,
        }

    def volumes(self) -> list[Object]:
        """The files, what forge keeps, and shared memory."""
        items = [{"key": key, "path": path} for path, key in keys(self.exported.files).items()]
        kept: Object = {"persistentVolumeClaim": {"claimName": self.site.claim}} if self.site.claim else {"emptyDir": {}}
        return [
            {"name": "files", "configMap": {"name": self.exported.name, "items": items}},
            {"name": "kept", **kept},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(SHARED_MEMORY * len(self.exported.models))}},
        ]

    def annotations(self) -> dict[str, str]:
        """Of a pod that serves: where Prometheus finds Triton's figures, and of which files it is."""
        return {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(METRICS),
            "prometheus.io/path": "/metrics",
            "checksum/files": self.mark,
        }

    def place(self) -> Object:
        """Which nodes do: those with the GPU that is wanted, whatever else NVIDIA's taint keeps off them. What a pod is told of
        the cluster, and may ask of it, is nothing."""
        found: Object = {"automountServiceAccountToken": False, "enableServiceLinks": False}
        if self.exported.gpus:
            found["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        if self.site.gpu:
            found["nodeSelector"] = {"nvidia.com/gpu.product": self.site.gpu}
        if self.site.pull_secret:
            found["imagePullSecrets"] = [{"name": self.site.pull_secret}]
        return found

    @property
    def _built(self) -> str:
        return f"build {quote(f'{FILES}/{self.exported.file}')} --repository {REPOSITORY}"

    def _pod(self, containers: list[Object], restart: str) -> Object:
        return {"containers": containers, "volumes": self.volumes(), **self.place(), "restartPolicy": restart}

    def _container(self, name: str, words: str, resources: Object, *, writes: bool) -> Object:
        variables = {
            "FORGE_HOME": f"{KEPT}/home",
            "FORGE_EXECUTOR": "local",
            **({"FORGE_REMOTE_URL": self.site.remote} if self.site.remote else {}),
            **({"FORGE_REMOTE_ACCESS": "read-write"} if self.site.remote and writes else {}),
            **({"NVIDIA_DRIVER_CAPABILITIES": "compute,utility"} if self.exported.gpus else {}),
            "PIP_BREAK_SYSTEM_PACKAGES": "1",  # in an image the system's Python is nobody else's
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        brought = f"command -v forge >/dev/null || python3 -m pip install -q --no-cache-dir {quote(self.site.install)}\n"
        return {
            "name": name,
            "image": self.site.image or self.exported.image,
            "command": ["/bin/sh", "-ec", f"{brought}exec forge {words}\n"],
            "env": [{"name": each, "value": value} for each, value in variables.items()],
            "envFrom": [{"secretRef": {"name": self.site.secret, "optional": True}}],
            "resources": resources,
            "securityContext": {"allowPrivilegeEscalation": False, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumeMounts": [
                {"name": "files", "mountPath": FILES, "readOnly": True},
                {"name": "kept", "mountPath": KEPT},
                {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the pod's
            ],
        }


def keys(paths: Iterable[str]) -> dict[str, str]:
    """Path -> its key in a ConfigMap, which knows no folders and few characters."""
    return {path: f"{number}-{_ODD.sub('-', path.rpartition('/')[2])[-200:]}" for number, path in enumerate(paths)}


def _asked(models: tuple[Model, ...], *, build: bool) -> Object:
    """What a container asks of its node: GPUs that its models share, and memory as far as somebody knows."""
    gpus = max((model.gpus for model in models), default=0)
    memory = max(model.building for model in models) if build else sum(model.host for model in models)
    requests: Object = {"cpu": str(4 * max(gpus, 1))} if gpus else {"cpu": "2"}
    if memory:
        requests["memory"] = f"{-(-memory // 2**20)}Mi"
    if not gpus:
        return {"requests": requests}
    return {"requests": {**requests, "nvidia.com/gpu": str(gpus)}, "limits": {"nvidia.com/gpu": str(gpus)}}
