"""Images: found, pulled, built; and what of one may stand in a key."""

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import closing

import msgspec
from blake3 import blake3
from msgspec import Struct

from forge.diagnoses import Diagnosis
from forge.errors import HostError
from forge.machine.containers import HOME, FamilyImage, ImageBuild, ImageFacts, Line, Progress
from forge.machine.docker.daemon import Api, Daemon, each, fault, network, ours
from forge.machine.docker.owners import KEY
from forge.machine.transcript import Transcript

MIRRORED = "nvcr.io/"
"""The registry that a mirror stands for: NVIDIA's, where every image that forge knows is from."""
_NAMES = "forge/"
_PLAIN = re.compile(r"[^a-z0-9]+")


class _Config(Struct, rename="pascal"):
    """What a container of the image starts with."""

    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] | None = None


class _Layers(Struct, rename="pascal"):
    layers: list[str] | None = None


class Image(Struct, rename="pascal"):
    """GET /images/NAME/json, as far as forge reads it."""

    id: str
    repo_digests: list[str] | None = None
    architecture: str = ""
    size: int = 0
    config: _Config | None = None
    root_fs: _Layers = msgspec.field(default_factory=_Layers, name="RootFS")


class _Bytes(Struct):
    current: int = 0
    total: int = 0


class _Said(Struct):
    """One event of a pull or a build."""

    id: str = ""
    stream: str = ""
    error: str = ""
    status: str = ""
    detail: _Bytes = msgspec.field(default_factory=_Bytes, name="progressDetail")
    aux: dict[str, object] | None = None


class _Named(Struct, rename="pascal"):
    id: str


class _Listed(Struct, rename="pascal"):
    """GET /images/json, as far as forge reads it."""

    repo_tags: list[str] | None = None
    labels: dict[str, str] | None = None


class Images:
    """The images of one daemon. ``table`` is what a failed build is looked up in, ``mirror`` where NVIDIA's are pulled from."""

    _daemon: Daemon
    _table: Iterable[Diagnosis]
    _mirror: str

    def inspect(self, reference: str) -> ImageFacts | None:
        with self._daemon.connected() as api:
            return _inspected(api, reference)

    def hold(self, reference: str, progress: Progress) -> ImageFacts:
        """The image's facts; pulled first if this machine does not hold it, and named as it was asked for."""
        with self._daemon.connected() as api:
            if held := _inspected(api, reference):
                return held
            if reference.startswith("sha256:"):
                raise HostError("this machine holds no such image", where=reference, hint="name it by its registry and tag")
            place = mirrored(reference, self._mirror)
            _pull(api, place, progress)
            if place != reference:
                _name(api, place, reference)
            if pulled := _inspected(api, reference):
                return pulled
        raise HostError("the pull ended and the image is not there", where=reference, hint="run it again")

    def build(self, build: ImageBuild, line: Line) -> str:
        """The id of the image that carries the build's key: held, or built now. A failed build leaves no container."""
        with self._daemon.connected() as api:
            with ours("list its images"):
                held = msgspec.convert(api.images(filters={"label": f"{KEY}={build.key}"}), list[_Named])
            if held:
                return held[0].id
            with Transcript(build.log, line) as log:
                return self._built(api, build, log)

    def made(self, home: str) -> tuple[FamilyImage, ...]:
        """Those that still have the name that forge gave them."""
        with self._daemon.connected() as api, ours("list its images"):
            listed = msgspec.convert(api.images(filters={"label": f"{HOME}={home}"}), list[_Listed])
        found = [(tag, (one.labels or {}).get(KEY, "")) for one in listed for tag in one.repo_tags or ()]
        return tuple(FamilyImage(tag, key) for tag, key in found if key and tag.startswith(_NAMES) and tag.endswith(f":{key}"))

    def discard(self, image: FamilyImage) -> bool:
        """By its name: what somebody has given a name of their own stays under that one."""
        import docker.errors

        with self._daemon.connected() as api, ours("remove an image", image.name):
            try:
                api.remove_image(image.name)
            except docker.errors.APIError as error:
                if error.status_code not in {404, 409}:
                    raise
                return error.status_code == 404
        return True

    def _built(self, api: Api, build: ImageBuild, log: Transcript) -> str:
        doing = f"build the image of {build.family}"
        with ours(doing, str(build.log)):
            events = api.build(
                fileobj=io.BytesIO(build.dockerfile.encode()),
                tag=f"{_NAMES}{_PLAIN.sub('-', build.family.lower()).strip('-') or 'family'}:{build.key}",
                labels={**build.labels, KEY: build.key},
                network_mode=network(api),
                rm=True,
                forcerm=True,
                decode=True,
            )
        identity = ""
        with closing(events) as said:
            for event in _events(said, doing):
                log.write((event.stream or (event.status and f"{event.status}\n")).encode())
                if event.error:
                    log.write(f"{event.error}\n".encode(), 2)
                    raise log.failure(f"Docker could not {doing}: {event.error}", self._table)
                identity = str((event.aux or {}).get("ID", identity))
        if not identity:
            raise HostError(
                f"Docker went away when it was to {doing}", where=str(build.log), hint="start the daemon and build again"
            )
        return identity


def _inspected(api: Api, reference: str) -> ImageFacts | None:
    import docker.errors

    with ours("look at an image", reference):
        try:
            image = msgspec.convert(api.inspect_image(reference), Image)
        except docker.errors.ImageNotFound:
            return None
    config = image.config or _Config()
    digest, content = _digest(image, reference), _content(image, config)
    return ImageFacts(
        reference=reference,
        id=image.id,
        identity=digest.partition("@")[2] or content,
        base=digest or image.id,
        size=image.size,
        labels=config.labels or {},
        content=content,
    )


def _digest(image: Image, reference: str) -> str:
    """``name@sha256:...`` as a registry knows the image, of the repository that was asked for where it has several."""
    from docker.utils import parse_repository_tag

    repository = parse_repository_tag(reference)[0]
    known = sorted(image.repo_digests or [])
    return next((digest for digest in known if digest.partition("@")[0] == repository), known[0] if known else "")


def _content(image: Image, config: _Config) -> str:
    """A name for an image that no registry knows: its files and what it starts, for its id changes with every rebuild."""
    words = [
        image.architecture,
        image.root_fs.layers,
        sorted(config.env or []),
        config.entrypoint,
        config.cmd,
        config.working_dir,
        config.user,
    ]
    return f"blake3:{blake3(msgspec.json.encode(words)).hexdigest()}"


def mirrored(reference: str, mirror: str) -> str:
    """Where an image is pulled from: NVIDIA's at ``mirror``, where there is one.

    One that is named by its digest comes from its own registry: a daemon gives nothing that it pulled elsewhere such a name.
    """
    if not mirror or not reference.startswith(MIRRORED) or "@" in reference:
        return reference
    return f"{mirror}/{reference.removeprefix(MIRRORED)}"


def _name(api: Api, place: str, reference: str) -> None:
    """Give what was pulled from ``place`` the name that recipes, plans and keys know it by."""
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(reference)
    with ours("name an image", reference):
        api.tag(place, repository, tag or "latest")


def _pull(api: Api, reference: str, progress: Progress) -> None:
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(reference)
    doing = "pull the image"
    with ours(doing, reference):
        events = api.pull(repository, tag or "latest", stream=True, decode=True)
    layers: dict[str, _Bytes] = {}
    with closing(events) as said:
        for event in _events(said, doing):
            if event.error:
                raise fault(doing, event.error, reference)
            if event.id and event.status == "Downloading" and event.detail.total:
                layers[event.id] = event.detail
            elif event.id in layers and event.status == "Download complete":
                layers[event.id].current = layers[event.id].total
            else:
                continue
            progress(sum(one.current for one in layers.values()), sum(one.total for one in layers.values()))


def _events(said: Iterator[object], doing: str) -> Iterator[_Said]:
    for event in each(said, doing):
        yield msgspec.convert(event, _Said)
