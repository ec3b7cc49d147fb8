"""What lies in the repository: folders that are no models, files that are not what they seem, and forge's own manifest."""

from collections.abc import Iterator

from forge.check.model import Kind, Repository, table
from forge.check.rules.rule import Found, Rule, Severity


def _strays(repository: Repository) -> Iterator[Found]:
    held = repository.manifest
    if held is not None and not any(model.inside for model in held.models):
        return  # forge serves what it makes in explicit mode; assets are put inside to be served without it
    for folder in repository.strays:
        yield Found(folder, f"{folder} stands among the models and is none: Triton's default control mode does not start")


def _faults(repository: Repository) -> Iterator[Found]:
    for fault in repository.faults:
        if "git-lfs" in fault.what:
            yield Found(fault.path, fault.what)


def _truncated(repository: Repository) -> Iterator[Found]:
    for fault in repository.faults:
        if "git-lfs" not in fault.what:
            yield Found(fault.path, fault.what)


def _listed(repository: Repository) -> Iterator[Found]:
    for held in repository.manifest.models if repository.manifest else ():
        for folder in held.roles.values():
            if folder not in repository.by_folder:
                yield Found("forge.json", f"{held.name} has a model {folder}, and its folder is gone", needle=f'"{folder}"')


def _moved(repository: Repository) -> Iterator[Found]:
    held = repository.manifest
    if held is None or not held.root or held.root == repository.root:
        return
    if any(value.startswith(f"{held.root}/") for _, config in repository.readable() for value in config.parameters.values()):
        yield Found("forge.json", f"the repository was made in {held.root}, its configs name that place", needle='"root"')


def _llmapi(repository: Repository) -> Iterator[Found]:
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
    if found is None or not found.shown:
        return "there is no such folder" if path.startswith(("/forge/repository/", f"{repository.root}/")) else ""
    if found.broken or "config.json" not in found.files:
        return "there is no config.json in it"
    return ""


def _yaml_batch(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.LLMAPI):
        stated = table(model.arguments.get("triton_config"))
        if config.decoupled and "decoupled" in stated and not stated["decoupled"]:
            path = next(path for path in model.sources if path.endswith(".yaml"))
            yield Found(f"{model.folder}/{path}", "config.pbtxt is decoupled and triton_config is not", needle="decoupled")


RULES = (
    Rule(
        "not-a-model",
        Severity.WARNING,
        "a folder among the models is none",
        "In the default control mode (none) Triton takes every folder for a model, and one without config.pbtxt "
        "keeps the server from starting: _assets, engines, tokenizers, also .git. Folders inside a model's own are "
        "accepted.",
        "Poll failed for model directory '_assets': failed to open text file for read .../_assets/config.pbtxt: No such file "
        "or directory\nerror: creating server: Internal - failed to load all models",
        "serve with --model-control-mode=explicit and --load-model=NAME for each, as `forge serve` does, or move it "
        "into a model's folder: `forge build --assets inside`",
        _strays,
    ),
    Rule(
        "lfs-pointer",
        Severity.ERROR,
        "a git-lfs pointer stands where a file should be",
        "A clone without git-lfs, or with GIT_LFS_SKIP_SMUDGE, leaves a text of three lines in the place of each large file.",
        "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge\n"
        "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion magicTagRead == "
        "kMAGIC_TAG failed.)",
        "`git lfs pull` where it was cloned, and copy it again",
        _faults,
    ),
    Rule(
        "truncated",
        Severity.ERROR,
        "a file of weights is cut short",
        "A download or a copy that was broken off leaves a file whose header promises more bytes than there are.",
        "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
        "fetch or copy it again",
        _truncated,
    ),
    Rule(
        "manifest",
        Severity.ERROR,
        "forge.json lists a model that is gone",
        "forge published these folders together; without one of them the others do not load or do not answer.",
        "failed to poll model 'ensemble': model not found in any model repository.",
        "build it again: `forge build RECIPE`; what is in the store is not made twice",
        _listed,
    ),
    Rule(
        "moved",
        Severity.WARNING,
        "the repository was moved, and its configs name the old place",
        "Configs of the twin name tokenizer and weights by absolute paths. `forge serve` writes them anew when it "
        "finds the repository elsewhere; a server started by hand does not.",
        "TritonModelException: /old/place/_assets/m/tokenizer/tokenizer.json is missing",
        "`forge serve` once, or build it again where it stands",
        _moved,
    ),
    Rule(
        "llmapi-model",
        Severity.ERROR,
        "model.yaml does not lead to a model",
        "NVIDIA's llmapi model has no engine: 1/model.yaml holds the arguments of LLM(), and its `model` is a folder "
        "with a Hugging Face checkpoint or a name on the hub.",
        "OSError: /models/llama does not appear to have a file named config.json.",
        "name the folder that the server sees",
        _llmapi,
    ),
    Rule(
        "llmapi-decoupled",
        Severity.WARNING,
        "config.pbtxt and model.yaml disagree about streaming",
        "NVIDIA's llmapi model takes triton_config from model.yaml when Triton completes configs; with "
        "--disable-auto-complete-config only config.pbtxt counts, and the two should say the same.",
        "Streaming is only supported in decoupled mode.",
        "set both to the same",
        _yaml_batch,
    ),
)
