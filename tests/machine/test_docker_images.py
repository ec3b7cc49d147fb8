"""Images on a real Docker engine: what they are, and that none is built twice."""

from pathlib import Path
from secrets import token_hex

import pytest
from msgspec.structs import replace

from docker_fixture import PLAIN, environ, listed
from forge.errors import HostError, StepError
from forge.machine.containers import HOME, FamilyImage, ImageBuild, dockerfile
from forge.machine.docker.containers import DockerContainers
from forge.machine.docker.images import mirrored
from forge.schema.values import Requirements
from loopback_registry import registry

OWN = "FROM ${base}\nRUN echo ${pip} > /installed\n"


def quiet(text: str) -> None:
    """Nobody listens."""


@pytest.fixture
def base(containers: DockerContainers) -> str:
    held = containers.inspect(PLAIN)
    assert held is not None
    return held.base


def build_of(tmp_path: Path, text: str, key: str) -> ImageBuild:
    return ImageBuild("Plain family", f"{key}-{token_hex(6)}", text, tmp_path / "build.log", {"forge.family": "plain"})


def test_an_image_is_known_by_what_is_in_it(containers: DockerContainers, engine: str) -> None:
    import docker

    held = containers.inspect(PLAIN)
    assert held is not None
    client = docker.DockerClient(base_url=engine)
    client.images.get(PLAIN).tag("forge-tests/renamed", "2")
    client.close()
    renamed = containers.inspect("forge-tests/renamed:2")
    assert renamed is not None
    assert renamed.identity == held.identity
    assert held.identity.startswith("blake3:")
    assert held.base == held.id
    assert containers.inspect("forge-tests/none:1") is None


def test_an_image_is_built_once_and_found_by_its_key(containers: DockerContainers, base: str, tmp_path: Path) -> None:
    build = build_of(tmp_path, dockerfile(base, Requirements(pip=("numpy<2",)), OWN), "once")
    lines: list[str] = []
    first = containers.build(build, lines.append)
    assert any("FROM" in line for line in lines)
    assert "Successfully built" in (tmp_path / "build.log").read_text()
    (tmp_path / "build.log").unlink()
    assert containers.build(build, pytest.fail) == first
    assert not (tmp_path / "build.log").exists()
    made = containers.inspect(f"forge/plain-family:{build.key}")
    assert made is not None
    assert made.id == first
    assert made.labels == {"forge.key": build.key, "forge.family": "plain"}
    assert containers.read(first, ("/installed",)) == {"/installed": b"numpy<2\n"}


def test_only_what_this_home_made_is_listed_and_given_up(
    containers: DockerContainers, base: str, tmp_path: Path, engine: str
) -> None:
    import docker

    mine, theirs = (
        replace(build_of(tmp_path, f"FROM {base}\nENV WHOSE={home}\n", home), labels={HOME: str(tmp_path / home)})
        for home in ("mine", "theirs")
    )
    for build in (mine, theirs):
        containers.build(build, quiet)
    (image,) = containers.made(str(tmp_path / "mine"))
    assert image == FamilyImage(f"forge/plain-family:{mine.key}", mine.key)
    client = docker.DockerClient(base_url=engine)
    user = client.containers.create(image.name, "true")
    assert not containers.discard(image)
    user.remove()
    client.close()
    assert containers.discard(image)
    assert containers.made(str(tmp_path / "mine")) == ()
    assert len(containers.made(str(tmp_path / "theirs"))) == 1


def test_two_images_of_one_content_have_one_identity(containers: DockerContainers, base: str, tmp_path: Path) -> None:
    """Ids change with what made an image; keys must not."""
    ids = [containers.build(build_of(tmp_path, f"FROM {base}\nENV A=1\n# {n}\n", f"same{n}"), quiet) for n in "ab"]
    found = [containers.inspect(one) for one in ids]
    other = containers.inspect(containers.build(build_of(tmp_path, f"FROM {base}\nENV A=2\n", "other"), quiet))
    assert ids[0] != ids[1]
    assert found[0] is not None
    assert found[1] is not None
    assert other is not None
    assert found[0].identity == found[1].identity != other.identity


def test_a_failed_build_says_why_and_leaves_nothing(
    containers: DockerContainers, base: str, tmp_path: Path, engine: str
) -> None:
    word = token_hex(6)
    build = build_of(tmp_path, f"FROM {base}\nRUN echo 'no wheel for this' && exit 4 # {word}\n", "fails")
    with pytest.raises(StepError, match="no wheel for this") as caught:
        containers.build(build, quiet)
    assert "returned a non-zero code: 4" in str(caught.value)
    assert caught.value.where == str(tmp_path / "build.log")
    assert [one for one in listed(engine) if word in one.command] == []
    assert containers.inspect(f"forge/plain-family:{build.key}") is None


def test_a_dockerfile_that_is_none_is_named(containers: DockerContainers, base: str, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="unknown instruction") as caught:
        containers.build(build_of(tmp_path, f"FROM {base}\nRUNN x\n", "wrong"), quiet)
    assert "forge dockerfile" in caught.value.hint


def test_an_image_that_is_held_needs_no_registry(containers: DockerContainers) -> None:
    assert containers.hold(PLAIN, lambda done, total: pytest.fail("pulled")).reference == PLAIN


def test_a_pulled_image_is_known_by_its_registrys_digest(containers: DockerContainers, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with registry() as source:
        facts = containers.hold(source.reference, lambda done, total: told.append((done, total)))
    repository = source.reference.rpartition(":")[0]
    assert facts.identity == source.digest
    assert facts.base == f"{repository}@{source.digest}"
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 2_000_000
    # The registry is gone: what is held needs it no more, also as a base and by its digest.
    assert containers.hold(facts.base, lambda done, total: pytest.fail("pulled")).identity == source.digest
    image = containers.build(build_of(tmp_path, dockerfile(facts.base, Requirements(), OWN), "pulled"), quiet)
    assert len(containers.read(image, ("/weights",))["/weights"]) == 2_000_000


def test_an_image_that_came_broken_is_not_held(containers: DockerContainers) -> None:
    with registry(broken=True) as source:
        with pytest.raises(HostError, match="pull the image"):
            containers.hold(source.reference, lambda done, total: None)
        assert containers.inspect(source.reference) is None


def test_nvidias_image_comes_from_the_mirror_under_its_own_name(engine: str, plain: str) -> None:
    with registry() as source:
        host, _, path = source.reference.partition("/")
        repository, _, tag = path.rpartition(":")
        theirs = f"nvcr.io/{repository}:{tag}"
        through = DockerContainers(environ(engine), mirror=host)
        facts = through.hold(theirs, lambda done, total: None)
    assert (facts.reference, facts.identity) == (theirs, source.digest)
    # The mirror is gone, and so is the need of it: also for who knows of none.
    plainly = DockerContainers(environ(engine))
    assert plainly.hold(theirs, lambda done, total: pytest.fail("pulled")).identity == source.digest
    assert through.discard(FamilyImage(theirs, ""))


def test_a_mirror_stands_for_nvidias_registry_alone() -> None:
    asked = ("nvcr.io/nvidia/tritonserver:25.08", "docker.io/library/busybox", "nvcr.io/nvidia/x@sha256:1", "mine.example/x:1")
    assert [mirrored(each, "harbor.example.com/nvcr") for each in asked] == [
        "harbor.example.com/nvcr/nvidia/tritonserver:25.08",
        *asked[1:],
    ]
    assert mirrored(asked[0], "") == asked[0]


def test_a_mirror_that_does_not_have_the_image_is_named(engine: str, plain: str) -> None:
    with registry() as source:
        host, _, path = source.reference.partition("/")
        through = DockerContainers(environ(engine), mirror=host)
        with pytest.raises(StepError, match="unknown") as caught:
            through.hold(f"nvcr.io/{path.partition(':')[0]}:none", lambda done, total: None)
    assert host in str(caught.value)


def test_a_registry_that_asks_for_a_login_names_the_fix(containers: DockerContainers) -> None:
    with registry(closed=True) as source, pytest.raises(HostError) as caught:
        containers.hold(source.reference, lambda done, total: None)
    assert "docker login" in caught.value.hint


def test_a_tag_that_the_registry_does_not_have_is_named(containers: DockerContainers) -> None:
    with registry() as source, pytest.raises(StepError, match="unknown") as caught:
        containers.hold(f"{source.reference}2", lambda done, total: None)
    assert "no image of that name" in caught.value.hint


def test_an_image_that_no_registry_gives_is_told_so(containers: DockerContainers) -> None:
    with pytest.raises(HostError, match="pull the image") as caught:
        containers.hold("127.0.0.1:1/nvidia/none:1", lambda done, total: None)
    assert caught.value.where == "127.0.0.1:1/nvidia/none:1"
    with pytest.raises(HostError, match="no such image"):
        containers.hold("sha256:" + "0" * 64, lambda done, total: None)


def test_forges_own_dockerfile_installs_packages(containers: DockerContainers, base: str, tmp_path: Path) -> None:
    template = (Path(__file__).parents[2] / "Dockerfiles" / "family.Dockerfile").read_text(encoding="utf-8")
    # The plain image has no pip; what stands in for it here says what it was asked, and was never built before.
    pip = (
        f"ENV PYTHONPATH=/app/bin FRESH={token_hex(6)}\n"
        'RUN mkdir -p /app/bin/pip && echo "import sys; print(sys.argv[1:])" > /app/bin/pip/__main__.py\n'
    )
    text = dockerfile(base, Requirements(pip=("iniconfig>=2",)), template.replace("FROM ${base}\n", "FROM ${base}\n" + pip))
    lines: list[str] = []
    containers.build(build_of(tmp_path, text, "installs"), lines.append)
    assert any("'--constraint', '/tmp/forge-kept.txt', 'iniconfig>=2'" in line for line in lines)


def test_an_engine_says_what_it_is(containers: DockerContainers) -> None:
    facts = containers.facts()
    assert facts.version
    assert facts.memory > 0
    assert facts.free > 0
