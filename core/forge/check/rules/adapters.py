"""LoRA adapters that a server is told to load beforehand: whether they are there, told apart, and such as the engine takes."""

from collections.abc import Iterator

from forge.check.model import EngineFolder, Kind, Repository, number, table
from forge.check.rules.engine import engines
from forge.check.rules.rule import Found
from forge.schema.adapters import TASKS, AdapterFolder
from forge.trtllm.lora import MODULES

KEY = "lora_prefetch_dir"
_NAMES = {at: name for name, at in MODULES.items()}


def lora_folder(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENGINE):
        stated = config.stated(KEY)
        if stated and stated not in repository.adapters:
            yield Found(model.file, f"{KEY} is {stated}, and there is no such folder here", needle=stated)
        folder = repository.adapters.get(stated)
        for name, why in folder.broken.items() if folder else ():
            if name.isdigit():  # the server passes over the others
                yield Found(model.file, f"{KEY} is {stated}, and in its folder {name}: {why}", needle=stated)
    for model, config, engine in engines(repository):
        plugins = table(engine.limits.get("plugin_config"))
        if engine.built and config.stated(KEY) and "lora_plugin" in plugins and not plugins["lora_plugin"]:
            yield Found(model.file, f"{KEY} is set, and the engine was built without lora_plugin", needle=f'"{KEY}"')


def lora_task(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENGINE):
        stated = config.stated(KEY)
        for what in _confused(repository.adapters[stated]) if stated in repository.adapters else ():
            yield Found(model.file, f"{KEY} is {stated}: {what}", needle=stated)


def _confused(folder: AdapterFolder) -> Iterator[str]:
    yield from (f"its folder {name} is called by no number" for name in folder.tasks if not (name.isascii() and name.isdigit()))
    if twice := [name for name in folder.names if list(folder.names.values()).count(folder.names[name]) > 1]:
        yield f"{' and '.join(twice)} have one task id in {TASKS}"
    for name, task in folder.names.items():
        if str(task) not in folder.tasks:
            yield f"{name} is {task} in {TASKS}, and there is no such folder"


def lora_rank(repository: Repository) -> Iterator[Found]:
    for model, config, engine in engines(repository):
        folder, lora = repository.adapters.get(config.stated(KEY)), table(engine.limits.get("lora_config"))
        if folder is None or not lora or not engine.built:
            continue
        for name, rows in folder.tasks.items():
            if what := _unfit(engine, rows):
                yield Found(model.file, f"the adapter in {config.stated(KEY)}/{name} {what}", needle=config.stated(KEY))


def _unfit(engine: EngineFolder, rows: tuple[tuple[int, int, int], ...]) -> str:
    lora = table(engine.limits.get("lora_config"))
    most, enabled = number(lora.get("max_lora_rank")), lora.get("lora_target_modules")
    highest = max((rank for _, _, rank in rows), default=0)
    if most and highest > most:
        return f"has the rank {highest}, and the engine was built for {most}"
    strange = [_NAMES.get(at, str(at)) for at, _, _ in rows if isinstance(enabled, list) and _NAMES.get(at) not in enabled]
    return f"changes {strange[0]}, which the engine was not built for" if strange else ""
