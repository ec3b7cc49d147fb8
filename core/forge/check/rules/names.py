"""Folders, names and versions: what Triton looks at before it reads anything else."""

from collections.abc import Iterator

from forge.check.model import Repository
from forge.check.rules.rule import Found


def name(repository: Repository) -> Iterator[Found]:
    for model, config in repository.readable():
        if config.name and config.name != model.folder:
            yield Found(model.file, f"the model is named {config.name!r} and its folder {model.folder!r}", needle="name:")


def version_folder(repository: Repository) -> Iterator[Found]:
    for model in repository.models:
        if not model.versions:
            more = "" if model.config is None or model.config.backend != "python" else ", and put its model.py there"
            yield Found(model.file, f"{model.folder} has no version folder", f"make the folder: `mkdir {model.folder}/1`{more}")


def model_file(repository: Repository) -> Iterator[Found]:
    for model, config in repository.readable():
        if config.backend == "python" and model.versions and not model.code:
            name = config.file or "model.py"
            yield Found(model.file, f"{model.folder} runs in Triton's Python backend, and has no {model.versions[-1]}/{name}")
