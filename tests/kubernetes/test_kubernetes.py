"""`forge export kubernetes`: what Kubernetes and KServe take, by their own schemas; and pods whose commands do their work."""

import copy
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from msgspec.structs import replace

import originals
from fake_wiring import World
from forge.api.export import EXITS, exported
from forge.api.forge import Forge
from forge.cli import main
from forge.errors import RecipeError
from forge.kubernetes import objects
from forge.kubernetes.pod import FILES, KEPT, OPENAI, Exported, Site
from forge.kubernetes.yaml_text import text
from loopback_hub import loopback_hub
from patience import soon, spare
from shipped import ROOT

VERSIONS = [f"1.{minor}" for minor in range(29, 38)]
ENGINE = """
name = "{name}"
family = "llama"
[source]
hub = "acme/tiny"
[runtime]
kind = "{kind}"
[convert]
tp = {tp}
[build]
max_input_len = 64
max_seq_len = 128
"""
FLEET = 'recipes = ["../recipes/small.toml", "../recipes/large.toml"]\n'
SITE = Site("triton-forge==0.1.0", remote="s3://team/forge")


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A deployment of two engines, of which one takes two GPUs, and a lock."""
    for name, tp in (("small", 1), ("large", 2)):
        file = tmp_path / "recipes" / f"{name}.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(ENGINE.format(name=name, kind="engine", tp=tp))
    (tmp_path / "recipes" / "small.toml.lock").write_text("# pinned\n")
    file = tmp_path / "deployments" / "fleet.toml"
    file.parent.mkdir()
    file.write_text(FLEET)
    return file


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Forge:
    return world.shop(tmp_path / "home")


@pytest.fixture
def ready(shop: Forge, fleet: Path) -> Exported:
    return exported(shop, fleet)


def made(given: Exported, site: Site = SITE, *, kserve: bool = False) -> dict[str, list[Any]]:
    """The objects by kind, as YAML gives them back."""
    building, serving = objects.manifests(given, site, EXITS, kserve=kserve)
    found: dict[str, list[Any]] = {}
    for each in yaml.safe_load_all(text([*building, *serving])):
        found.setdefault(each["kind"], []).append(each)
    return found


SITES = [
    SITE,
    Site("triton-forge", claim="models", size="200Gi", namespace="llm", gpu="NVIDIA-H100-80GB-HBM3", pull_secret="nvcr"),
    Site("triton-forge", image="registry.example/forge@sha256:" + "0" * 64, replicas=3),
]


@pytest.mark.parametrize("site", SITES, ids=["shared store", "claim", "own image"])
def test_every_version_of_kubernetes_takes_every_object(ready: Exported, site: Site) -> None:
    found = [one for listed in made(ready, site).values() for one in listed]
    assert {"ConfigMap", "Deployment", "Service"} <= {each["kind"] for each in found}
    for each in found:
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):  # the check can fail
            kubernetes_validate.validate({**each, "sepc": {}}, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("plural", ["servingruntimes", "inferenceservices"])
def test_kserves_own_schemas_know_every_key(ready: Exported, plural: str) -> None:
    definition = originals.kserve(plural)
    if definition is None:
        pytest.skip(originals.MISSING)
    stated = yaml.safe_load(definition.read_text(encoding="utf-8"))["spec"]
    schema = closed(stated["versions"][0]["schema"]["openAPIV3Schema"])
    found = [one for each in made(ready, SITES[1], kserve=True).values() for one in each]
    (mine,) = (one for one in found if one["kind"] == stated["names"]["kind"])
    assert mine["apiVersion"] == f"{stated['group']}/{stated['versions'][0]['name']}"
    check: Any = Draft202012Validator(schema)
    assert [error.message for error in check.iter_errors(mine)] == []
    wrong = copy.deepcopy(mine)
    wrong["spec"].setdefault("predictor", wrong["spec"])["nodeSelectors"] = {}
    assert list(check.iter_errors(wrong))


def closed(schema: Any) -> Any:
    """The schema with unknown keys forbidden wherever it lists some; what the API server adds itself stays open."""
    if isinstance(schema, list):
        return list(map(closed, schema))  # pyright: ignore[reportUnknownArgumentType]
    if not isinstance(schema, dict):
        return schema
    told = {key: value if key == "metadata" else closed(value) for key, value in cast("dict[str, Any]", schema).items()}
    if isinstance(told.get("properties"), dict) and not told.get("x-kubernetes-preserve-unknown-fields"):
        told.setdefault("additionalProperties", False)
    told.pop("x-kubernetes-validations", None)
    if told.get("x-kubernetes-int-or-string"):
        told.pop("type", None)
    return told


def test_a_job_builds_each_recipe_on_its_own_gpus(ready: Exported) -> None:
    jobs = {job["metadata"]["name"]: job["spec"]["template"]["spec"]["containers"][0] for job in made(ready)["Job"]}
    small, large = jobs.values()
    assert [name.rpartition("-")[0] for name in jobs] == ["fleet-build-small", "fleet-build-large"]
    assert [job["resources"]["limits"]["nvidia.com/gpu"] for job in (small, large)] == ["1", "2"]
    (script,) = large["command"][2:]
    assert script.endswith(f"exec forge build {FILES}/recipes/large.toml --until build\n")
    assert {"name": "FORGE_REMOTE_ACCESS", "value": "read-write"} in large["env"]


def test_the_server_has_its_largest_models_gpus_and_only_reads(ready: Exported) -> None:
    (deployment,) = made(ready)["Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    for each in (*pod["initContainers"], *pod["containers"]):
        assert each["resources"]["limits"] == {"nvidia.com/gpu": "2"}
        assert "FORGE_REMOTE_ACCESS" not in {variable["name"] for variable in each["env"]}
        assert each["image"] == "nvcr.io/nvidia/tritonserver:25.08-trtllm-python-py3"
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}  # two servers at once would want four GPUs


@pytest.mark.parametrize("kserve", [False, True])
def test_no_pod_is_granted_or_told_more_than_it_needs(ready: Exported, monkeypatch: pytest.MonkeyPatch, kserve: bool) -> None:
    """No word with the cluster, no privilege, and what is secret by its name alone."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = made(ready, replace(SITE, secret="mine", pull_secret="nvcr"), kserve=kserve)
    assert "hf_secret" not in str(found)
    pods = [one["spec"]["template"]["spec"] for kind in ("Job", "Deployment") for one in found.get(kind, [])]
    pods += [one["spec"]["predictor"] for one in found.get("InferenceService", [])]
    assert len(pods) == 3
    for pod in pods:
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        assert pod["imagePullSecrets"] == [{"name": "nvcr"}]
    runtimes = [one["spec"] for one in found.get("ServingRuntime", [])]
    held = [each for pod in (*pods, *runtimes) for part in ("initContainers", "containers") for each in pod.get(part, [])]
    assert len(held) == 4
    for each in held:
        assert each["securityContext"] == {"allowPrivilegeEscalation": False, "seccompProfile": {"type": "RuntimeDefault"}}
        assert each["envFrom"] == [{"secretRef": {"name": "mine", "optional": True}}]
        assert [one["readOnly"] for one in each["volumeMounts"] if one["mountPath"] == FILES] == [True]


def test_a_requirement_is_one_word_of_the_pods_shell(ready: Exported) -> None:
    asked = "triton-forge[openai] @ https://example.com/a.whl; touch /tmp/x"
    (deployment,) = made(ready, replace(SITE, install=asked))["Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    installed = container["command"][2].splitlines()[0]
    assert shlex.split(installed)[-1] == asked


def test_files_stand_in_pods_as_here_changes_restart_it(ready: Exported, shop: Forge, fleet: Path) -> None:
    (config,) = made(ready)["ConfigMap"]
    (deployment,) = made(ready)["Deployment"]
    (volume,) = (each["configMap"] for each in deployment["spec"]["template"]["spec"]["volumes"] if "configMap" in each)
    laid = {item["path"]: config["data"][item["key"]] for item in volume["items"]}
    root = fleet.parents[1]
    assert laid == {path: (root / path).read_text() for path in laid}
    assert set(laid) == {"deployments/fleet.toml", "recipes/small.toml", "recipes/large.toml", "recipes/small.toml.lock"}
    (root / "recipes" / "small.toml").write_text(ENGINE.format(name="small", kind="engine", tp=1) + "# again\n")
    marks = {
        each["spec"]["template"]["metadata"]["annotations"]["checksum/files"]
        for each in (deployment, *made(exported(shop, fleet))["Deployment"])
    }
    assert len(marks) == 2


def test_without_a_lasting_place_no_job_is_written(ready: Exported) -> None:
    assert "Job" not in made(ready, replace(SITE, remote=""))


def test_a_claim_has_one_job_publishing_where_servers_look(ready: Exported) -> None:
    found = made(ready, SITES[1])
    (job,) = found["Job"]
    (deployment,) = found["Deployment"]
    volumes = [each["spec"]["template"]["spec"]["volumes"] for each in (job, deployment)]
    assert all({"name": "kept", "persistentVolumeClaim": {"claimName": "models"}} in each for each in volumes)
    assert found["PersistentVolumeClaim"][0]["metadata"]["name"] == "models"


@pytest.mark.parametrize("text", ["My_Fleet.of two" + "x" * 60, "7b", "日本", "-", "", "a" * 53, "a.b"])
def test_a_name_is_one_that_kubernetes_takes(text: str) -> None:
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?", objects.name(text))


def test_names_that_differ_stay_different() -> None:
    texts = ["a.b", "a-b", "A_B", "a b", "x" * 60 + "1", "x" * 60 + "2", "日本", "!!!", "7b", "m-7b"]
    assert len({objects.name(text) for text in texts}) == len(texts)
    assert objects.name("a-b") == "a-b"


def test_recipes_with_like_paths_have_their_own_jobs(shop: Forge, tmp_path: Path) -> None:
    paths = ["a/b.toml", "a__b.toml", "a-b.toml", "7 b (ü) $(id).toml", "日本.toml"]
    for number, path in enumerate(paths):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(ENGINE.format(name=f"m{number}", kind="engine", tp=1))
    (tmp_path / "fleet.toml").write_text(f"recipes = {json.dumps(paths, ensure_ascii=False)}\n")
    found = made(exported(shop, tmp_path / "fleet.toml"))
    assert len({job["metadata"]["name"] for job in found["Job"]}) == len(paths)
    (config,) = found["ConfigMap"]
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key) for key in config["data"])
    (volume,) = (each["configMap"] for each in found["Job"][0]["spec"]["template"]["spec"]["volumes"] if "configMap" in each)
    laid = {item["path"]: config["data"][item["key"]] for item in volume["items"]}
    assert {path: laid[path] for path in paths} == {path: (tmp_path / path).read_text() for path in paths}
    for each in (one for listed in found.values() for one in listed):
        kubernetes_validate.validate(each, VERSIONS[-1], strict=True)


def test_of_other_files_a_job_is_another_one(ready: Exported, shop: Forge, fleet: Path) -> None:
    before = {job["metadata"]["name"] for job in made(ready)["Job"]}
    assert {job["metadata"]["name"] for job in made(exported(shop, fleet))["Job"]} == before
    recipe = fleet.parents[1] / "recipes" / "small.toml"
    recipe.write_text(recipe.read_text().replace("128", "256"))
    assert not before & {job["metadata"]["name"] for job in made(exported(shop, fleet))["Job"]}


def test_other_pods_make_another_job_more_servers_do_not(ready: Exported) -> None:
    def jobs(**words: Any) -> set[str]:
        return {job["metadata"]["name"] for job in made(ready, replace(SITE, **words))["Job"]}

    assert jobs(replicas=3) == jobs()
    for words in ({"image": "mine/forge:2"}, {"install": "triton-forge==9"}, {"gpu": "NVIDIA-L4"}, {"secret": "other"}):
        assert not jobs(**words) & jobs(), words


def test_the_page_shows_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```console\n\$ forge (.*?)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for folder in ("deployments", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    done = CliRunner(env={"FORGE_HOME": str(tmp_path / "home")}).invoke(main, shown[0].split())
    assert done.exit_code == 0, done.output

    def plain(text: str) -> list[str]:
        return sorted(re.sub(r"forge-files=[0-9a-f]{16}", "forge-files=...", text).splitlines())

    assert plain(done.output) == plain(shown[1])


def test_a_recipe_under_another_name_asks_for_its_memory(shop: Forge, fleet: Path) -> None:
    (fleet.parents[1] / "recipes" / "small.toml.lock").unlink()  # it is none that can be read
    fleet.write_text('[[recipes]]\nrecipe = "../recipes/small.toml"\nname = "one"\n')
    (job,) = made(exported(shop, fleet))["Job"]
    assert "memory" in job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]


@pytest.mark.parametrize(
    ("git", "refused"),
    [
        ("https://user:ghp_x@example.com/x.git", True),
        ("https://ghp_x@example.com/x.git", True),
        ("ssh://git@example.com/x.git", False),
        ("https://example.com/x.git", False),
    ],
)
@pytest.mark.parametrize("place", ["source", "draft", "lora"])
def test_a_token_in_an_address_is_in_no_manifest(shop: Forge, fleet: Path, git: str, refused: bool, place: str) -> None:
    recipe = fleet.parents[1] / "recipes" / "small.toml"
    if place == "source":
        recipe.write_text(recipe.read_text().replace('hub = "acme/tiny"', f'git = "{git}"'))
    else:
        table = '[[lora]]\nname = "sql"' if place == "lora" else "[draft]"
        read = (
            recipe.read_text()
            if place == "lora"
            else recipe.read_text().replace("[source]", 'variant = "draft-target"\n[source]')
        )
        recipe.write_text(f'{read}{table}\ngit = "{git}"\n')
    with pytest.raises(RecipeError, match="a password or a token") if refused else nullcontext() as error:
        exported(shop, fleet)
    assert error is None or "ghp_x" not in str(error.value)


def test_a_recipe_by_a_path_of_this_machine_is_refused(shop: Forge, fleet: Path) -> None:
    fleet.write_text(f'recipes = ["{fleet.parents[1]}/recipes/small.toml"]\n')
    with pytest.raises(RecipeError, match="no pod has it there"):
        exported(shop, fleet)


@pytest.mark.parametrize(
    "words",
    [
        {"namespace": "Foo; rm -rf /"},
        {"claim": "X Y"},
        {"claim": "a", "size": "lots"},
        {"secret": ""},
        {"image": "x y"},
        {"gpu": "NVIDIA H100 80GB"},
        {"pull_secret": "../.."},
        {"replicas": 99999999999},
        {"install": "--index-url=http://evil"},
        {"install": "triton-forge @ git+https://ghp_x@example.com/x"},
        {"install": "git+ssh://me:ghp_x@example.com/x"},
    ],
)
def test_a_word_that_kubernetes_would_not_take_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot be|has to be|has a password or a token") as error:
        replace(Site("triton-forge"), **words)
    assert "ghp_x" not in str(error.value)


@pytest.mark.parametrize("install", ["git+ssh://git@example.com:22/x@v1", "git+https://example.com/x@v1", "./a.whl"])
def test_a_requirement_at_an_address_is_taken(install: str) -> None:
    assert Site(install).install == install


@pytest.mark.parametrize("source", ['path = "checkpoint"', 'gguf = "model.gguf"'])
def test_what_stands_on_this_machine_is_refused(shop: Forge, fleet: Path, source: str) -> None:
    recipe = fleet.parents[1] / "recipes" / "small.toml"
    recipe.write_text(recipe.read_text().replace('hub = "acme/tiny"', source))
    with pytest.raises(RecipeError, match="no pod sees it"):
        exported(shop, fleet)


def test_two_images_in_one_server_are_refused(shop: Forge, fleet: Path) -> None:
    recipe = fleet.parents[1] / "recipes" / "small.toml"
    recipe.write_text(recipe.read_text().replace('kind = "engine"', 'kind = "engine"\nimage = "25.06"'))
    with pytest.raises(RecipeError, match="one server has one image"):
        exported(shop, fleet)


def test_what_no_one_server_can_hold_is_refused(shop: Forge, fleet: Path) -> None:
    recipe = fleet.parents[1] / "recipes" / "small.toml"
    recipe.write_text(recipe.read_text().replace('kind = "engine"', 'kind = "vllm"'))
    with pytest.raises(RecipeError, match="one server cannot serve them all"):
        exported(shop, fleet)


def test_more_than_a_config_map_holds_is_refused(ready: Exported) -> None:
    large = replace(ready, files={**ready.files, "recipes/prompts.jsonl": "x" * (1 << 20)})
    with pytest.raises(RecipeError, match="ConfigMap"):
        objects.manifests(large, SITE, EXITS)


# -- what the pods do


class Node:
    """Runs containers of a pod as processes of this machine: their commands and variables, their folders below one here."""

    def __init__(self, place: Path, home: Path, secret: dict[str, str], ports: dict[int, int]) -> None:
        self._place, self._secret = place, secret
        self._moved = {f"{KEPT}/home": str(home), KEPT: str(place / "kept"), FILES: str(place / "files")}
        self._moved |= {f"port {there}": f"port {here}" for there, here in ports.items()}

    def mount(self, config: Any, volumes: Any) -> None:
        (items,) = (each["configMap"]["items"] for each in volumes if "configMap" in each)
        for item in items:
            file = self._place / "files" / item["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(config["data"][item["key"]])

    def start(self, container: Any) -> subprocess.Popen[str]:
        """Its process, and standard error with its output."""
        stated = {each["name"]: self._here(each["value"]) for each in container["env"]}
        command = [self._here(word) for word in container["command"]]
        image = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # one that has forge
        environ = {**os.environ, **image, **stated, **self._secret}
        return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def _here(self, text: str) -> str:
        for there, here in self._moved.items():
            text = text.replace(there, here)
        return text


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are still there at the end of a test are ended."""
    left: list[subprocess.Popen[str]] = []
    yield left
    for each in left:
        if each.poll() is None:
            each.send_signal(signal.SIGTERM)
            each.communicate(timeout=60)


@pytest.mark.slow
def test_the_jobs_commands_build_and_the_servers_command_serves(
    home: Path, tmp_path: Path, ended: list[subprocess.Popen[str]]
) -> None:
    """From the manifests alone, as kubelets would: only a claim, a node's Python and a secret are this machine's."""
    import tiny_served

    folder = tmp_path / "checkpoint"
    tiny_served.checkpoint(folder)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny_served.RECIPE.replace('path = "checkpoint"', 'hub = "acme/tiny"'))
    with loopback_hub() as hub:
        hub.commit("acme/tiny", {file.name: file.read_bytes() for file in folder.iterdir()})
        given = exported(Forge(home, {**os.environ, "HF_ENDPOINT": hub.url}), recipe)
        found = made(given, Site("triton-forge", claim="models"))
        http, grpc, metrics, openai = spare(4)
        node = Node(tmp_path / "node", home, {"HF_ENDPOINT": hub.url}, {8000: http, 8001: grpc, 8002: metrics, OPENAI: openai})
        (job,), (deployment,) = found["Job"], found["Deployment"]
        pod = deployment["spec"]["template"]["spec"]
        node.mount(found["ConfigMap"][0], pod["volumes"])
        said = ""
        for container in (*job["spec"]["template"]["spec"]["containers"], *pod["initContainers"]):
            process = node.start(container)
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
        assert "held" in said or "nothing to do" in said
    server = node.start(pod["containers"][0])
    ended.append(server)
    probe = pod["containers"][0]["readinessProbe"]["httpGet"]["path"]
    soon(lambda: server.poll() is not None or answers(f"http://127.0.0.1:{http}{probe}"))
    assert server.poll() is None, server.communicate()[0]
    shop = Forge(home, dict(os.environ))
    target = shop.target("tiny", tmp_path / "node" / "kept" / "models")
    asked = replace(target.request("hello"), max_tokens=3)
    assert "".join(chunk.text for chunk in shop.generate(f"127.0.0.1:{grpc}", asked))


def answers(url: str) -> bool:
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=5) as said:
            return bool(said.status == 200)
    except OSError:
        return False
