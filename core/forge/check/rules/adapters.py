"""LoRA adapters that a server is told to load beforehand: whether they are there, and the engine has room for them."""

from collections.abc import Iterator

from forge.check.model import Kind, Repository, table
from forge.check.rules.engine import engines
from forge.check.rules.rule import Found, Rule, Severity

KEY = "lora_prefetch_dir"


def _prefetched(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENGINE):
        stated = config.stated(KEY)
        if stated and stated not in repository.adapters:
            yield Found(model.file, f"{KEY} is {stated}, and there is no such folder here", needle=stated)
    for model, config, engine in engines(repository):
        plugins = table(engine.limits.get("plugin_config"))
        if engine.built and config.stated(KEY) and "lora_plugin" in plugins and not plugins["lora_plugin"]:
            yield Found(model.file, f"{KEY} is set, and the engine was built without lora_plugin", needle=f'"{KEY}"')


RULES = (
    Rule(
        "lora-folder",
        Severity.WARNING,
        "the adapters to load beforehand are not there, or the engine takes none",
        "lora_prefetch_dir is opened by the server: inside a container it is the path there. An engine that was built without "
        "lora_plugin takes no adapter, whatever a request brings.",
        "no line says so: requests with the adapter's lora_task_id are refused",
        "take the parameter away; adapters are not inputs of a recipe yet",
        _prefetched,
    ),
)
