"""What lies in the repository: folders that are no models, files that are not what they seem, and forge's own manifest."""

from collections.abc import Iterator

from forge.check.model import Kind, Repository, table
from forge.check.rules.rule import Found


def not_a_model(repository: Repository) -> Iterator[Found]:
    held = repository.manifest
    if held is not None and not any(model.inside for model in held.models):
        return  # forge serves what it makes in explicit mode; assets are put inside to be served without it
    for folder in repository.strays:
        yield Found(folder, f"{folder} stands among the models and is none: Triton's default control mode does not start")


def lfs_pointer(repository: Repository) -> Iterator[Found]:
    for fault in repository.faults:
        if "git-lfs" in fault.what:
            yield Found(fault.path, fault.what)


def truncated(repository: Repository) -> Iterator[Found]:
    for fault in repository.faults:
        if "git-lfs" not in fault.what:
            yield Found(fault.path, fault.what)


def manifest(repository: Repository) -> Iterator[Found]:
    for held in repository.manifest.models if repository.manifest else ():
        for folder in held.roles.values():
            if folder not in repository.by_folder:
                yield Found("forge.json", f"{held.name} has a model {folder}, and its folder is gone", needle=f'"{folder}"')


def moved(repository: Repository) -> Iterator[Found]:
    held = repository.manifest
    if held is None or not held.root or held.root == repository.root:
        return
    if any(value.startswith(f"{held.root}/") for _, config in repository.readable() for value in config.parameters.values()):
        yield Found("forge.json", f"the repository was made in {held.root}, its configs name that place", needle='"root"')


def llmapi_model(repository: Repository) -> Iterator[Found]:
    for model, _ in repository.of(Kind.LLMAPI):
        path = next((path for path in model.sources if path.endswith(".yaml")), "")
        if not path:
            yield Found(model.file, f"{model.folder} has no model.yaml, which says what LLM() is to load")
        elif not model.arguments:
            yield Found(f"{model.folder}/{path}", "it cannot be read as YAML, or says nothing")
        elif not (name := model.arguments.get("model")):
            yield Found(f"{model.folder}/{path}", "it names no model")
        elif str(name).startswith("/") and (wrong := _absent(repository, str(name))):
            yield Found(f"{model.folder}/{path}", f"model is {name}: {wrong}", needle=str(name))


def _absent(repository: Repository, path: str) -> str:
    found = repository.engines.get(path)
    if found is None:
        return "there is no such folder" if repository.holds(path) else ""
    if found.broken or "config.json" not in found.files:
        return "there is no config.json in it"
    return ""


def llmapi_decoupled(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.LLMAPI):
        stated = table(model.arguments.get("triton_config"))
        if config.decoupled and "decoupled" in stated and not stated["decoupled"]:
            path = next(path for path in model.sources if path.endswith(".yaml"))
            yield Found(f"{model.folder}/{path}", "config.pbtxt is decoupled and triton_config is not", needle="decoupled")
