"""`forge doctor`: what is missing for which recipe, how grave that is, and what fixes it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from fakes import FakeOrigin
from forbidden_ptrace import without_ptrace
from forge.check import doctor
from forge.check.doctor import Finding, RecipeNeeds, Signs, Status, examine
from forge.check.signs import Checkup
from forge.cli import main
from forge.errors import HostError, Problem, SourceError
from forge.machine.containers import ContainerRun, DaemonFacts, FamilyImage, ImageBuild, ImageFacts, Line, Progress
from forge.machine.machine import Disk
from forge.machine.probe import ThisMachine
from forge.plan.families import PluginInfo
from forge.recipe.deployment import Asked
from forge.recipe.reader import read
from forge.schema.values import Checkpoint, Environment, Gpu, Host, Pinned, Ports, RuntimeKind, SourceKind
from forge.store.store import Store

GB = 10**9
HOST = Host("3.11", "/usr/bin/python3.11", "linux-x86_64")
DAEMON = DaemonFacts("28.0", "/docker", 500 * GB, 64 * GB, nvidia=True, rootless=False)
WELL = Signs(
    home=Disk("/home", 500 * GB, 1),
    host=HOST,
    shared_memory=8 * GB,
    daemon=DAEMON,
    images=Disk("/docker", 500 * GB, 2),
    driver="580.95.05",
    gpus=(Gpu("NVIDIA H200", 140 * GB, "9.0"),),
    plugins=(PluginInfo("llama", "family", "triton-forge", "1", 1, "ok"),),
)
BARE = replace(
    WELL,
    docker=(Problem("unix:///var/run/docker.sock", "no Docker daemon answers", "install Docker or start it"),),
    daemon=None,
    images=None,
    driver="",
    gpus=(),
)
OLD = replace(WELL, restricts=False, host=replace(HOST, triton="/opt/tritonserver"))
"""With a Triton that cannot keep model control to forge."""
ENGINE = RecipeNeeds("gemma", RuntimeKind.ENGINE, "25.09", gpus=1, size=5 * GB, missing=5 * GB)
TWIN = RecipeNeeds("small", RuntimeKind.TWIN, "25.08", size=GB, missing=GB)


def of(found: tuple[Finding, ...], check: str) -> list[Finding]:
    return [each for each in found if each.check == check]


def statuses(found: tuple[Finding, ...]) -> dict[str, Status]:
    """The gravest of each check."""
    order = list(Status)
    return {each.check: max((f.status for f in found if f.check == each.check), key=order.index) for each in found}


# -- judging


@pytest.mark.parametrize("recipes", [(), (ENGINE,), (TWIN,), (ENGINE, TWIN)])
def test_a_machine_with_everything_has_nothing_to_fix(recipes: tuple[RecipeNeeds, ...]) -> None:
    assert {each.status for each in examine(recipes, WELL)} == {Status.OK}


def test_an_engine_on_a_bare_machine_names_recipe_and_fix() -> None:
    found = examine((ENGINE, TWIN), BARE)
    assert [each for each, status in statuses(found).items() if status is Status.PROBLEM] == ["docker", "driver", "gpu"]
    docker = of(found, "docker")[0]
    assert "gemma needs it" in docker.what
    assert "small" not in docker.what
    assert docker.hint == "install Docker or start it"


def test_an_engine_whose_containers_get_no_gpu_needs_docker_alone() -> None:
    found = examine((replace(ENGINE, gpus=0),), BARE)
    assert [each for each, status in statuses(found).items() if status is Status.PROBLEM] == ["docker"]
    assert "needed for the runtimes engine and llmapi on GPUs, which these recipes are not" in of(found, "gpu")[0].what


def test_what_twins_do_not_need_is_a_remark() -> None:
    found = examine((TWIN,), BARE)
    assert [each for each, status in statuses(found).items() if status is Status.REMARK] == ["docker", "driver", "gpu"]
    assert not [each for each in found if each.status in (Status.WARNING, Status.PROBLEM)]


def test_without_a_recipe_missing_parts_are_warnings_with_their_use() -> None:
    found = examine((), BARE)
    grave = [each for each in found if each.status is not Status.OK]
    assert {each.status for each in grave} == {Status.WARNING}
    assert all("needed for the runtimes engine and llmapi" in each.what and each.hint for each in grave)


def test_inside_nvidias_container_docker_is_not_missed() -> None:
    found = examine((ENGINE,), replace(BARE, inside=True, driver="580.95", gpus=WELL.gpus))
    assert statuses(found)["docker"] is Status.REMARK
    assert not [each for each in found if each.status is Status.PROBLEM]


def test_docker_without_nvidias_runtime_says_what_to_install() -> None:
    toolkit = of(examine((ENGINE,), replace(WELL, daemon=replace(DAEMON, nvidia=False))), "toolkit")[0]
    assert toolkit.status is Status.PROBLEM
    assert "nvidia-container-toolkit" in toolkit.hint


def test_a_driver_older_than_the_image_needs_names_one_fitting() -> None:
    found = of(examine((replace(ENGINE, image="26.03"), ENGINE), replace(WELL, driver="580.95.05")), "driver")
    assert [each.status for each in found] == [Status.PROBLEM]
    assert "26.03" in found[0].what
    assert "590.44" in found[0].hint
    assert "26.02" in found[0].hint
    assert statuses(examine((ENGINE,), replace(WELL, driver="580.95.05")))["driver"] is Status.OK


def test_without_a_recipe_the_driver_meets_the_whole_table() -> None:
    assert "up to 26.02" in of(examine((), WELL), "driver")[0].what
    old = of(examine((), replace(WELL, driver="470.1")), "driver")[0]
    assert old.status is Status.WARNING
    assert "known images: 24.10 to 26.07" in old.what


def test_too_few_gpus_are_problems_too_little_memory_a_warning() -> None:
    found = of(examine((replace(ENGINE, gpus=2),), WELL), "gpu")
    assert (found[-1].status, "tp" in found[-1].hint) == (Status.PROBLEM, True)
    found = of(examine((replace(ENGINE, size=150 * GB),), WELL), "gpu")
    assert (found[-1].status, "quantize" in found[-1].hint) == (Status.WARNING, True)


def test_a_gpu_older_than_the_images_know_is_a_warning() -> None:
    found = of(examine((ENGINE,), replace(WELL, gpus=(Gpu("Tesla V100", 32 * GB, "7.0"),))), "gpu")
    assert [each.status for each in found] == [Status.WARNING]
    assert statuses(examine((ENGINE,), replace(WELL, gpus=(Gpu("RTX 6000", 96 * GB, "12.0"),))))["gpu"] is Status.OK


@pytest.mark.parametrize(
    ("free", "status"), [(20, Status.OK), (15, Status.OK), (14, Status.WARNING), (5, Status.WARNING), (4, Status.PROBLEM)]
)
def test_the_disk_must_hold_three_times_what_is_unfetched(free: int, status: Status) -> None:
    found = of(examine((ENGINE,), replace(WELL, home=Disk("/home", free * GB, 1))), "disk")
    assert found[0].status is status
    held = replace(ENGINE, missing=0)
    assert of(examine((held,), replace(WELL, home=Disk("/home", free * GB, 1))), "disk")[0].status is Status.OK


def test_dockers_disk_counts_only_for_an_image_not_held() -> None:
    tight = replace(WELL, images=Disk("/docker", 30 * GB, 2))
    assert of(examine((ENGINE,), tight), "disk")[1].status is Status.WARNING
    held = replace(tight, held=frozenset({"nvcr.io/nvidia/tritonserver:25.09-trtllm-python-py3"}))
    assert of(examine((ENGINE,), held), "disk")[1].status is Status.OK
    assert of(examine((TWIN,), tight), "disk")[1].status is Status.OK


def test_one_filesystem_has_to_hold_the_image_and_the_build() -> None:
    room = doctor.IMAGE + 10 * GB
    apart = replace(WELL, home=Disk("/home", room, 1), images=Disk("/docker", room, 2))
    together = replace(apart, images=Disk("/docker", room, 1))
    assert of(examine((ENGINE,), apart), "disk")[1].status is Status.OK
    assert of(examine((ENGINE,), together), "disk")[1].status is Status.WARNING


def test_shared_memory_is_held_to_the_runtime() -> None:
    small = replace(WELL, shared_memory=10 * 10**6)
    assert statuses(examine((TWIN,), small))["shared memory"] is Status.PROBLEM
    assert statuses(examine((ENGINE,), small))["shared memory"] is Status.REMARK
    dockers = replace(WELL, shared_memory=67_108_864)
    assert statuses(examine((TWIN,), dockers))["shared memory"] is Status.OK
    assert statuses(examine((ENGINE,), dockers))["shared memory"] is Status.WARNING


def test_a_host_unfit_for_the_twin_matters_to_twins_only() -> None:
    old = replace(WELL, twin=Problem("", "Triton from PyPI needs glibc 2.35", "use a newer distribution"))
    assert statuses(examine((TWIN,), old))["triton"] is Status.PROBLEM
    assert statuses(examine((ENGINE,), old))["triton"] is Status.REMARK
    assert statuses(examine((), old))["triton"] is Status.WARNING


def test_a_broken_plugin_is_as_grave_as_its_recipes() -> None:
    broken = replace(WELL, plugins=(*WELL.plugins, PluginInfo("stranger", "unknown", "theirs", "2", 1, "ImportError: no")))
    named = replace(ENGINE, plugins=("stranger",))
    other = replace(ENGINE, plugins=("llama",))
    assert statuses(examine((named,), broken))["plugins"] is Status.PROBLEM
    assert statuses(examine((other,), broken))["plugins"] is Status.REMARK
    assert statuses(examine((ENGINE,), broken))["plugins"] is Status.WARNING
    assert of(examine((), broken), "plugins")[-1].hint == "update or uninstall theirs 2"


def test_a_store_that_cannot_be_written_is_always_a_problem() -> None:
    found = examine((), replace(WELL, refused=Problem("/home", "cannot be written", "set FORGE_HOME to another place")))
    assert statuses(found)["store"] is Status.PROBLEM
    assert of(found, "store")[0].what.startswith("/home: cannot be written")
    assert "FORGE_HOME" in of(found, "store")[0].hint


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        (OLD, "/opt/tritonserver is too old"),
        (replace(WELL, traces=False), "ptrace is forbidden"),
    ],
)
def test_a_machine_that_cannot_keep_model_control_is_told(signs: Signs, said: str) -> None:
    (found,) = (each for each in examine((TWIN,), signs) if each.check == "control")
    assert found.status is Status.WARNING
    assert said in found.what
    assert found.hint
    assert statuses(examine((TWIN,), WELL))["control"] is Status.OK


@pytest.mark.parametrize(
    ("recipe", "host", "signs", "status"),
    [
        (TWIN, "0.0.0.0", OLD, Status.PROBLEM),
        (TWIN, "gpu-box.example", OLD, Status.PROBLEM),
        (TWIN, "127.0.0.53", OLD, Status.WARNING),
        (TWIN, "localhost", OLD, Status.WARNING),
        (ENGINE, "0.0.0.0", OLD, Status.WARNING),  # a container has a Triton of its own
        (ENGINE, "0.0.0.0", replace(OLD, inside=True), Status.PROBLEM),
        (TWIN, "0.0.0.0", WELL, Status.OK),
    ],
)
def test_a_deployment_whose_server_others_can_control_is_a_problem(
    recipe: RecipeNeeds, host: str, signs: Signs, status: Status
) -> None:
    (found,) = of(examine((replace(recipe, ports=Ports(host=host)),), signs), "control")
    assert found.status is status
    if status is Status.PROBLEM:
        assert f"has it listen at {host}, which `forge serve` refuses" in found.what
        assert "[ports] host" in found.hint


# -- gathering


@dataclass
class FakeMachine:
    """A machine as Signs state it."""

    signs: Signs = WELL

    def driver(self) -> str:
        return self.signs.driver

    def gpus(self) -> tuple[Gpu, ...]:
        return self.signs.gpus

    def inside(self) -> bool:
        return self.signs.inside

    def disk(self, folder: Path) -> Disk:
        return replace(self.signs.home, place=str(folder))

    def shared_memory(self) -> int:
        return self.signs.shared_memory

    def host(self) -> Host:
        return self.signs.host

    def restricts(self, triton: str) -> bool:
        assert triton == self.signs.host.triton
        return self.signs.restricts

    def traces(self) -> bool:
        return self.signs.traces

    def check(self, environment: Environment) -> None:
        if environment.python != "3.11":
            raise HostError(f"only {environment.python} was found", hint="install 3.11")


@dataclass
class FakeContainers:
    """A daemon that answers questions about itself, or does not."""

    problems: tuple[Problem, ...] = ()
    images: Mapping[str, ImageFacts] = field(default_factory=dict[str, ImageFacts])

    def check(self, gpus: bool = False) -> tuple[Problem, ...]:
        return self.problems

    def facts(self) -> DaemonFacts:
        return DAEMON

    def inspect(self, reference: str) -> ImageFacts | None:
        return self.images.get(reference)

    def hold(self, reference: str, progress: Progress) -> ImageFacts:
        raise AssertionError("a doctor pulls nothing")

    def build(self, build: ImageBuild, line: Line) -> str:
        raise AssertionError("a doctor builds nothing")

    def made(self, home: str) -> tuple[FamilyImage, ...]:
        raise AssertionError("a doctor lists no images")

    def discard(self, image: FamilyImage) -> bool:
        raise AssertionError("a doctor removes nothing")

    def run(self, run: ContainerRun, line: Line) -> None:
        raise AssertionError("a doctor runs nothing")

    def read(self, image: str, paths: tuple[str, ...]) -> Mapping[str, bytes]:
        raise AssertionError("a doctor starts no container")

    def help_text(self, image: str, argv: tuple[str, ...], gpus: str = "") -> str:
        raise AssertionError("a doctor starts no container")

    def reap(self) -> tuple[str, ...]:
        raise AssertionError("a doctor removes nothing")


class Gated(FakeOrigin):
    """Found by everybody, read by nobody."""

    def read(self, pinned: Pinned) -> Checkpoint:
        raise SourceError(
            "gated: its licence has to be accepted", where=f"hub/{pinned.name}", hint="accept it, then set HF_TOKEN"
        )


class Clinic:
    """A checkup with fakes behind its ports."""

    def __init__(self, home: Path) -> None:
        self.machine, self.containers, self.origin = FakeMachine(), FakeContainers(), FakeOrigin()
        self.store = Store(home / "store", clock=lambda: 0.0)
        self._home = home

    def findings(self, **recipes: str) -> tuple[Finding, ...]:
        origins = dict.fromkeys(SourceKind, self.origin)
        checkup = Checkup(self._home, self.store, origins, self.machine, self.containers)
        texts = {Path(name): text for name, text in recipes.items()}
        return checkup.findings(tuple(texts), lambda path: (Asked(path, lambda: read(texts[path], str(path))),))


RECIPE = 'name = "tiny"\n[source]\nhub = "acme/tiny"\n[runtime]\nkind = "{}"\n'


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path / "home")


def test_a_buildable_recipe_is_told_with_source_and_family(clinic: Clinic) -> None:
    found = clinic.findings(tiny=RECIPE.format("engine"))
    assert {each.status for each in found} == {Status.OK}
    assert "acme/tiny" in of(found, "source")[0].what
    assert of(found, "plugins")[-1].what == "tiny: served by llama"
    assert clinic.origin.fetches == 0


def test_a_gated_model_is_a_problem_with_its_fix(clinic: Clinic) -> None:
    clinic.origin = Gated()
    source = of(clinic.findings(tiny=RECIPE.format("engine")), "source")
    assert [each.status for each in source] == [Status.PROBLEM]
    assert source[0].what.startswith("tiny: hub/acme/tiny: gated")
    assert source[0].hint == "accept it, then set HF_TOKEN"


def test_an_unreachable_source_does_not_hide_the_other_recipes(clinic: Clinic) -> None:
    clinic.origin.down = True
    found = clinic.findings(a=RECIPE.format("twin"), b=RECIPE.format("twin").replace('"tiny"', '"other"'))
    assert [each.what.partition(":")[0] for each in of(found, "source")] == ["tiny", "other"]


def test_every_problem_of_a_recipe_is_a_finding(clinic: Clinic) -> None:
    found = of(clinic.findings(bad='name = "/"\n[source]\nhub = "acme/tiny"\nno = 1\n'), "recipe")
    assert [each.status for each in found] == [Status.PROBLEM, Status.PROBLEM]
    assert all(each.what.startswith("bad: ") and "bad: bad: " not in each.what for each in found)


def test_an_unknown_image_and_a_missing_family_are_findings(clinic: Clinic) -> None:
    unknown = clinic.findings(tiny=RECIPE.format("engine") + 'image = "19.01"\n')
    assert of(unknown, "image")[0].status is Status.PROBLEM
    absent = clinic.findings(tiny='family = "nobody"\n' + RECIPE.format("twin"))
    assert statuses(absent)["plugins"] is Status.PROBLEM


def test_what_the_machine_lacks_is_gathered_through_its_ports(clinic: Clinic) -> None:
    clinic.containers.problems = BARE.docker
    clinic.machine.signs = replace(BARE, host=Host("3.9", "/usr/bin/python3.9", "linux-x86_64"))
    found = clinic.findings(tiny=RECIPE.format("twin"))
    assert statuses(found)["triton"] is Status.PROBLEM
    assert statuses(found)["docker"] is Status.REMARK
    assert not of(found, "toolkit")


def test_nowhere_for_temporary_files_is_a_problem_with_its_fix() -> None:
    nowhere = replace(WELL, temporary=Problem("", "no temporary file can be written", "set TMPDIR"))
    (found,) = of(examine((TWIN,), nowhere), "temporary")
    assert (found.status, found.hint) == (Status.PROBLEM, "set TMPDIR")


def test_a_home_that_others_may_write_to_is_a_warning(clinic: Clinic, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    assert {each.status for each in of(clinic.findings(), "store")} == {Status.OK}
    (tmp_path / "home").chmod(0o757)
    (warned,) = [each for each in of(clinic.findings(), "store") if each.status is Status.WARNING]
    assert f"{tmp_path / 'home'} may be written to by everybody" in warned.what


def test_what_killed_builds_left_is_told_and_left_alone(clinic: Clinic) -> None:
    left = clinic.store.root / "staging" / f"{'a' * 64}.dead"
    left.mkdir(parents=True)
    store = of(clinic.findings(), "store")[0]
    assert (store.status, store.what.partition(" ")[0]) == (Status.WARNING, "1")
    assert left.is_dir()


# -- the machine itself


def program(folder: Path, name: str, text: str) -> dict[str, str]:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return {"PATH": str(folder)}


def test_nvidia_smi_is_asked_for_driver_and_gpus(tmp_path: Path) -> None:
    rows = "echo '143771, 100000, 9.0, NVIDIA H200'; echo '[N/A], [N/A], 12.1, NVIDIA GB10'"
    says = f'case "$1" in --query-gpu=driver_version) echo 580.95.05;; *) {rows};; esac'
    machine = ThisMachine(program(tmp_path, "nvidia-smi", says))
    assert machine.driver() == "580.95.05"
    assert machine.gpus() == (Gpu("NVIDIA H200", 143771 << 20, "9.0", 100000 << 20), Gpu("NVIDIA GB10", 0, "12.1"))


def test_a_driver_without_nvidia_smi_is_read_from_proc(tmp_path: Path) -> None:
    environ = program(tmp_path, "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    text = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build  (dvs-builder@x)\nGCC version: 12\n"
    )
    (tmp_path / "version").write_text(text)
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (tmp_path / "gpus" / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA L4\nIRQ: 1\n")
    machine = ThisMachine(environ, tmp_path)
    assert (machine.driver(), machine.gpus()) == ("575.57.08", (Gpu("NVIDIA L4", 0, ""),))
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n")
    assert machine.driver() == "535.183.01"


def test_a_machine_without_nvidia_says_so(tmp_path: Path) -> None:
    machine = ThisMachine({"PATH": str(tmp_path)}, tmp_path, tmp_path / "no-shm")
    assert (machine.driver(), machine.gpus(), machine.inside(), machine.shared_memory()) == ("", (), False, 0)


def test_missing_options_show_that_a_triton_is_too_old(tmp_path: Path) -> None:
    machine = ThisMachine({})
    (tmp_path / "bin").mkdir()
    for held, wanted in ((b"..\0grpc-restricted-protocol\0http-restricted-api\0..", True), (b"..\0http-address\0..", False)):
        (tmp_path / "bin" / "tritonserver").write_bytes(held)
        assert machine.restricts(str(tmp_path)) is wanted
    assert machine.restricts("")


def test_whether_a_program_may_be_traced_is_tried() -> None:
    machine = ThisMachine(os.environ)
    assert machine.traces()
    assert not without_ptrace(machine.traces)


def test_a_disk_is_that_of_the_nearest_existing_folder(tmp_path: Path) -> None:
    machine = ThisMachine({})
    disk = machine.disk(tmp_path / "not" / "yet")
    assert (disk.place, disk.device) == (str(tmp_path / "not" / "yet"), tmp_path.stat().st_dev)
    assert disk.free > 0


# -- the verb


def test_this_machine_can_be_looked_at_for_real(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    for name, content in FakeOrigin().files.items():
        (tmp_path / "checkpoint" / name).write_bytes(content)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('name = "tiny"\n[source]\npath = "checkpoint"\n[runtime]\nkind = "twin"\n')
    environ = {"FORGE_HOME": str(tmp_path / "home")}
    told = CliRunner().invoke(main, ["doctor", str(recipe), "--json"], env=environ)
    document = json.loads(told.stdout)
    checks = {each["check"] for each in document["findings"]}
    assert {"docker", "driver", "gpu", "disk", "shared memory", "triton", "plugins", "store", "source"} <= checks
    assert told.exit_code == (HostError.exit_code if document["counts"]["problem"] else 0)
    assert any("checkpoint" in each["what"] for each in document["findings"] if each["check"] == "source")


def test_a_problem_ends_with_fixes_and_the_exit_code(tmp_path: Path) -> None:
    recipe = tmp_path / "lost.toml"
    recipe.write_text('name = "lost"\n[source]\npath = "nowhere"\n[runtime]\nkind = "twin"\n')
    told = CliRunner().invoke(main, ["doctor", str(recipe)], env={"FORGE_HOME": str(tmp_path / "home")})
    assert told.exit_code == HostError.exit_code
    lines = told.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("problem") and "there is no such folder" in line)
    assert "-> " in lines[at + 1]
    assert "problem" in lines[-1]
