"""Folders, names and versions: what Triton looks at before it reads anything else."""

from collections.abc import Iterator

from forge.check.model import Repository
from forge.check.rules.rule import Found, Rule, Severity


def _name(repository: Repository) -> Iterator[Found]:
    for model, config in repository.readable():
        if config.name and config.name != model.folder:
            yield Found(model.file, f"the model is named {config.name!r} and its folder {model.folder!r}", needle="name:")


def _version(repository: Repository) -> Iterator[Found]:
    for model in repository.models:
        if not model.versions:
            more = "" if model.config is None or model.config.backend != "python" else ", and put its model.py there"
            yield Found(model.file, f"{model.folder} has no version folder", f"make the folder: `mkdir {model.folder}/1`{more}")


def _code(repository: Repository) -> Iterator[Found]:
    for model, config in repository.readable():
        if config.backend == "python" and model.versions and not model.code:
            name = config.file or "model.py"
            yield Found(model.file, f"{model.folder} runs in Triton's Python backend, and has no {model.versions[-1]}/{name}")


RULES = (
    Rule(
        "name",
        Severity.ERROR,
        "a model's name is not its folder's",
        "Triton knows a model by its folder and refuses a config that calls it otherwise. Copying a folder for a "
        "second model is enough to get there. Ensemble and bls then have to name the new folders too.",
        "Poll failed for model directory 'postprocessing': unexpected directory name 'postprocessing' for model "
        "'post', directory name must equal model name",
        "set name to the folder's, or leave it out",
        _name,
        fixable=True,
    ),
    Rule(
        "version-folder",
        Severity.ERROR,
        "a model has no version folder",
        "Triton loads a version, a folder whose name is a number. Models without files of their own, ensemble and "
        "tensorrt_llm, need one too, and an empty folder is what git does not keep.",
        "failed to load model 'ensemble': at least one version must be available under the version policy of model 'ensemble'",
        "make the folder: `mkdir MODEL/1`",
        _version,
        fixable=True,
    ),
    Rule(
        "model-file",
        Severity.ERROR,
        "a Python model has no model.py",
        "The Python backend loads VERSION/model.py, or what default_model_filename says, and starts a process for it "
        "that never reports back when there is nothing to load.",
        "no line says so: Triton 2.51 waits for ever, and is never ready",
        "put the model's code there; NVIDIA's stands beside the skeleton's config.pbtxt",
        _code,
    ),
)
