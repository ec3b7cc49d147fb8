"""LoRA adapters that a server is told to load beforehand: whether they are there, told apart, and such as the engine takes."""

from collections.abc import Iterator

from forge.check.adapters import AdapterFolder
from forge.check.model import EngineFolder, Kind, Repository, number, table
from forge.check.rules.engine import engines
from forge.check.rules.rule import Found, Rule, Severity
from forge.schema.adapters import ARRAYS, TASKS
from forge.trtllm.lora import MODULES

KEY = "lora_prefetch_dir"
_NAMES = {at: name for name, at in MODULES.items()}


def _prefetched(repository: Repository) -> Iterator[Found]:
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


def _numbered(repository: Repository) -> Iterator[Found]:
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


def _fitting(repository: Repository) -> Iterator[Found]:
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


RULES = (
    Rule(
        "lora-folder",
        Severity.WARNING,
        "the adapters to load beforehand are not there, or the engine takes none",
        "lora_prefetch_dir is opened by the server: inside a container it is the path there. Each adapter has a folder in it "
        f"with {ARRAYS[0]} and {ARRAYS[1]}. An engine that was built without lora_plugin takes no adapter, whatever a "
        "request brings.",
        "no line says so: requests with the adapter's lora_task_id are refused",
        "name the adapters under [[lora]] in the recipe and build it again, or take the parameter away",
        _prefetched,
    ),
    Rule(
        "lora-task",
        Severity.ERROR,
        "adapters are not told apart by their task ids",
        "A request names an adapter by a number, its lora_task_id. The server takes it from the name of the adapter's folder "
        f"in lora_prefetch_dir, forge's clients from {TASKS} beside that: with one number for two adapters one answers for the "
        "other.",
        "lora task name sql is invalid, skipping to load lora weight from this folder.\n"
        "LoRA task 3 not found in cache. Please send LoRA weights with request",
        "build it again: forge numbers the adapters of a recipe",
        _numbered,
    ),
    Rule(
        "lora-rank",
        Severity.ERROR,
        "an adapter is not of the kind that its engine was built for",
        "trtllm-build takes the largest rank of all adapters (--max_lora_rank) and the modules that they change "
        "(--lora_target_modules); the runtime refuses an adapter that is beyond them.",
        "Invalid low_rank (64). low_rank must be smaller than mMaxLowRank (8)\nlora module mlp_gate not enabled for this model",
        "build the engine again, with the adapter under [[lora]]",
        _fitting,
    ),
)
