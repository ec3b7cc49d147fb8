"""The objects themselves: for Kubernetes alone, and for KServe. Pure.

Field by field they are what ``kubernetes-validate --strict`` takes for 1.29 to 1.37, and KServe's own schemas of
serving.kserve.io (v1alpha1 ServingRuntime, v1beta1 InferenceService).
"""

import re
from collections.abc import Iterator, Sequence

from blake3 import blake3
from msgspec.structs import replace

from forge.errors import Problem, RecipeError
from forge.kubernetes.pod import GRPC, HTTP, METRICS, OPENAI, Exported, Model, Object, Pods, Site, keys

_MOST = 1 << 20
"""Bytes that a ConfigMap holds (Kubernetes' documentation of ConfigMaps)."""
_LONGEST = 52
"""Characters of a name that stays one with what Kubernetes appends to it."""
_ENGINE_ROOM = "kserve-container"
"""What KServe calls the container of the server, and finds it by."""
MARK = "forge-files"
"""A label of jobs: the mark of the files that they build, and of the pods that do."""
_KEPT_FOR = 7 * 24 * 3600
"""Seconds that a job which has ended is kept, for its log."""


def manifests(
    exported: Exported, site: Site, exits: Sequence[int], *, kserve: bool = False
) -> tuple[list[Object], list[Object]]:
    """What builds, and what serves, in the order in which they are applied.

    ``exits`` are exit codes of forge's that would come again: a job that ends so is not repeated. RecipeError where the
    deployment's files are more than a ConfigMap holds.
    """
    if (size := sum(len(text.encode()) for text in exported.files.values())) > _MOST:
        raise RecipeError((Problem(exported.file, f"its files have {size:,} bytes, more than the {_MOST:,} of a ConfigMap"),))
    maker = _Maker(exported, site, tuple(exits))
    return list(maker.building()), list(maker.kserve() if kserve else maker.serving())


def name(text: str) -> str:
    """``text`` as the name of an object, which other texts do not have: a label of RFC 1035, with room for what is appended."""
    plain = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
    if plain and plain == text and len(plain) <= _LONGEST and plain[0].isalpha():
        return plain
    short = plain[: _LONGEST - 16].strip("-")
    begin = f"{short}-" if short[:1].isalpha() else f"m-{short}-" if short else "forge-"
    return f"{begin}{blake3(text.encode()).hexdigest()[:8]}"


class _Maker:
    def __init__(self, exported: Exported, site: Site, exits: tuple[int, ...]) -> None:
        self._exported, self._site, self._exits = exported, site, exits
        digest = blake3()
        for path, text in sorted(exported.files.items()):
            digest.update(f"{path}\0{text}\0".encode())
        digest.update(f"{exported.image}\0{replace(site, replicas=1)}".encode())  # a job cannot be changed into another
        self._pods = Pods(exported, site, digest.hexdigest()[:16])

    def building(self) -> Iterator[Object]:
        named = keys(self._exported.files)
        yield self._object("v1", "ConfigMap", data={named[path]: text for path, text in self._exported.files.items()})
        if self._site.claim and self._site.size:
            asked = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": self._site.size}}}
            yield self._object("v1", "PersistentVolumeClaim", self._site.claim, spec=asked)
        if self._site.claim:
            yield self._job(None)
        elif self._site.remote:  # without either, what a job made would go with its pod
            for model in self._exported.models:
                yield self._job(model)

    def serving(self) -> Iterator[Object]:
        labels = self._labels("server")
        template = {"metadata": {"labels": labels, "annotations": self._pods.annotations()}, "spec": self._pods.serving()}
        # Two servers beside each other for the time of an update would need twice the GPUs.
        strategy = {"type": "Recreate" if self._exported.gpus else "RollingUpdate"}
        spec = {
            "replicas": self._site.replicas,
            "strategy": strategy,
            "selector": {"matchLabels": labels},
            "template": template,
        }
        yield self._object("apps/v1", "Deployment", spec=spec)
        ports = {"http": HTTP, "grpc": GRPC, "metrics": METRICS, "openai": OPENAI}
        named = [{"name": each, "port": port, "targetPort": each} for each, port in ports.items()]
        yield self._object("v1", "Service", spec={"selector": labels, "ports": named})

    def kserve(self) -> Iterator[Object]:
        """A ServingRuntime of forge's own, which is for this deployment, and the InferenceService that uses it."""
        mine = name(f"{self._exported.name}-forge")
        kind = {"name": "forge", "version": "1", "autoSelect": False}
        runtime = {
            "annotations": {"prometheus.kserve.io/port": str(METRICS), "prometheus.kserve.io/path": "/metrics"},
            "supportedModelFormats": [kind],
            "protocolVersions": ["v2", "grpc-v2"],
            "containers": [self._pods.server(_ENGINE_ROOM)],
            "volumes": self._pods.volumes(),
        }
        yield self._object("serving.kserve.io/v1alpha1", "ServingRuntime", mine, spec=runtime)
        predictor = {
            "minReplicas": self._site.replicas,
            "maxReplicas": self._site.replicas,
            "initContainers": [self._pods.models()],
            **self._pods.place(),
            "deploymentStrategy": {"type": "Recreate" if self._exported.gpus else "RollingUpdate"},
            "model": {"modelFormat": {"name": "forge", "version": "1"}, "runtime": mine, "protocolVersion": "v2"},
        }
        about = {"serving.kserve.io/deploymentMode": "Standard", **self._pods.annotations()}
        yield self._object("serving.kserve.io/v1beta1", "InferenceService", annotations=about, spec={"predictor": predictor})

    def _job(self, model: Model | None) -> Object:
        """A job is never changed: of other files it is another one, by its name."""
        labels = {**self._labels("build"), MARK: self._pods.mark}
        called = name(f"{self._exported.name}-build{f'-{model.name}' if model else ''}")
        # A node that is lost costs a try; a command that failed would fail again.
        rules = [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "build", "operator": "In", "values": list(self._exits)}},
        ]
        spec = {
            "backoffLimit": 3,
            "podFailurePolicy": {"rules": rules},
            "ttlSecondsAfterFinished": _KEPT_FOR,
            "template": {"metadata": {"labels": labels}, "spec": self._pods.building(model)},
        }
        return self._object("batch/v1", "Job", f"{called}-{self._pods.mark[:8]}", labels=labels, spec=spec)

    def _labels(self, component: str) -> dict[str, str]:
        return {"app.kubernetes.io/name": self._exported.name, "app.kubernetes.io/component": component}

    def _object(
        self,
        version: str,
        kind: str,
        called: str = "",
        *,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        **body: object,
    ) -> Object:
        about: Object = {"name": called or self._exported.name}
        if self._site.namespace:
            about["namespace"] = self._site.namespace
        about["labels"] = {
            "app.kubernetes.io/managed-by": "forge",
            **(labels or {"app.kubernetes.io/name": self._exported.name}),
        }
        if annotations:
            about["annotations"] = annotations
        return {"apiVersion": version, "kind": kind, "metadata": about, **body}
