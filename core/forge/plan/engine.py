"""TensorRT-LLM's engine: convert and build in the family's image, serve from the image's own skeletons."""

from collections.abc import Iterator, Sequence

from forge.errors import Problem, StepError
from forge.plan import engine_adapters as adapters, image_steps
from forge.plan.adapters import tasks
from forge.plan.hf_checkpoint import patched, tokenizer_links
from forge.plan.resolved import Resolved
from forge.plan.steps import Assemble, Entry, Fetch, Link, Run, Step, fetching
from forge.repository import bls, config as repository
from forge.schema.values import Command, ConfigOverrides, Engine, JsonPatch, Names, Patch, Role, TextFile
from forge.trtllm import help_texts, patches, toolchain
from forge.trtllm.toolchain import Tooling


def check(resolved: Resolved) -> Iterator[Problem]:
    """What the engine could not do, and what the image's own scripts and skeletons refuse, as far as they have been read."""
    stated, config = resolved.recipe.serve.parameters.get(Role.TENSORRT_LLM, {}), resolved.facts.checkpoint.config
    if "cross_kv_cache_fraction" in stated and config and not config.get("is_encoder_decoder"):
        where = f"serve.parameters.{Role.TENSORRT_LLM}.cross_kv_cache_fraction"
        yield Problem(where, "is set, and this model has a decoder alone: its engine does not load", "take it away")
    yield from adapters.check(resolved)
    if resolved.tooling is None:
        return
    yield from _check_flags(resolved, resolved.tooling)
    try:
        patches.patched(_script_patches(resolved), resolved.tooling.scripts)
    except StepError as error:
        yield Problem("patches", error.what, error.hint)
    yield from repository.check(_skeletons(resolved), _settings(resolved))
    yield from repository.ignored(_skeletons(resolved), resolved.recipe.serve.parameters)


def check_prefix(resolved: Resolved) -> Iterator[Problem]:
    """Whether the image's bls can be told its siblings' names."""
    if resolved.tooling is None:
        return
    draft = any(each.role is Role.DRAFT for each in resolved.family.engines())
    yield from bls.problems(_bls(resolved.tooling.skeletons), draft=draft)


def notes(resolved: Resolved) -> tuple[str, ...]:
    """What each patch will do to the image's scripts: applied, or not needed."""
    told = tuple(adapters.notes(resolved))
    if resolved.tooling is None:
        return told
    return (*patches.patched(_script_patches(resolved), resolved.tooling.scripts)[1], *told)


def entry(resolved: Resolved, names: Names) -> Entry:
    """The steps of one recipe on the engine path."""
    recipe, facts, family = resolved.recipe, resolved.facts, resolved.family
    model = patched(resolved)
    image = image_steps.family_image(resolved)
    placed = (("image", image), ("toolchain", image_steps.tools(resolved)))
    draft = (("draft", Step(f"{recipe.name}: draft", Fetch(facts.draft))),) if facts.draft else ()
    texts = (("calibration", fetching(f"{recipe.name}: calibration", facts.calibration)),) if facts.calibration else ()
    engines = family.engines()
    checkpoint = Step(
        f"{recipe.name}: checkpoint",
        Run(family.convert_commands(facts.toolchain), _script_patches(resolved), gpus=resolved.gpus),
        (*placed, ("model", model), *draft, *texts),
        promises=tuple(_inside(each, "config.json") for each in engines),
    )
    files = tuple(_inside(each, path) for each in engines for path in ("config.json", *_ranks(resolved)))
    engine = Step(
        f"{recipe.name}: engine",
        Run(_building(resolved), gpu=facts.gpu or "any", gpus=resolved.gpus),
        (("image", image), ("checkpoint", checkpoint)),
        promises=files,
    )
    assets = names.assets(recipe.name)
    links = tuple(Link("engine", path, f"{assets}/engines/{path}") for path in files)
    links += tokenizer_links(family.tokenizer(), model.promises, assets)
    if "config.json" in model.promises:  # it may state end tokens that nothing else does, and an engine's own does not
        links += (Link("model", "config.json", f"{assets}/checkpoint/config.json"),)
    links += adapters.links(resolved, assets)
    laid = Assemble(names, _told(_skeletons(resolved), names), _settings(resolved, names), links, tasks(resolved, assets))
    needs = (("image", image), ("engine", engine), ("model", model), *adapters.steps(resolved))
    step = Step(f"{recipe.name}: entry", laid, needs)
    return Entry(recipe.name, names, step, None)


def _building(resolved: Resolved) -> tuple[Command, ...]:
    return adapters.flagged(resolved, resolved.family.build_commands(resolved.facts.toolchain))


def _script_patches(resolved: Resolved) -> tuple[Patch, ...]:
    return tuple(each for each in resolved.family.patches(resolved.facts.toolchain) if not isinstance(each, JsonPatch))


def _skeletons(resolved: Resolved) -> tuple[TextFile, ...]:
    """The image's; the draft's model is a second one of the kind that the engine's is."""
    held = resolved.tooling.skeletons if resolved.tooling else ()
    if not any(each.role is Role.DRAFT for each in resolved.family.engines()):
        return held
    engine = f"{Role.TENSORRT_LLM}/"
    draft = (
        TextFile(each.path.replace(engine, f"{Role.DRAFT}/", 1), each.content) for each in held if each.path.startswith(engine)
    )
    return (*held, *draft)


def _bls(skeletons: Sequence[TextFile]) -> tuple[TextFile, ...]:
    """The files of tensorrt_llm_bls by their paths in its folder."""
    inside = f"{Role.BLS}/"
    return tuple(TextFile(each.path.removeprefix(inside), each.content) for each in skeletons if each.path.startswith(inside))


def _told(skeletons: tuple[TextFile, ...], names: Names) -> tuple[TextFile, ...]:
    """Under a prefix, with what tells the image's bls the names of its siblings."""
    if not names.prefix:
        return skeletons
    return (*skeletons, *(TextFile(f"{Role.BLS}/{each.path}", each.content) for each in bls.beside(_bls(skeletons))))


def _settings(resolved: Resolved, names: Names | None = None) -> repository.Settings:
    family = resolved.family
    assets = (names or Names()).assets(resolved.recipe.name)
    places = ConfigOverrides()
    for each in family.engines():
        where = f"{repository.ROOT}/{assets}/engines/{each.folder}".rstrip("/")
        places |= ConfigOverrides({each.role: {each.parameter: where}})
        if each.role is Role.TENSORRT_LLM and each.parameter == "engine_dir":  # its config.json tells the vocabulary's size
            places |= ConfigOverrides({Role.PREPROCESSING: {each.parameter: where}})
    places |= adapters.settings(resolved, assets)
    return repository.settings(resolved.recipe, places | family.config_overrides(), family.tokenizer(), names)


def _ranks(resolved: Resolved) -> tuple[str, ...]:
    return tuple(f"rank{rank}.engine" for rank in range(resolved.recipe.convert.tp * resolved.recipe.convert.pp))


def _inside(engine: Engine, path: str) -> str:
    return f"{engine.folder}/{path}" if engine.folder else path


def _check_flags(resolved: Resolved, tooling: Tooling) -> Iterator[Problem]:
    family, recipe = resolved.family, resolved.recipe
    for table, stated, commands in (
        ("convert", recipe.convert.args, family.convert_commands(resolved.facts.toolchain)),
        ("build", recipe.build.args, _building(resolved)),
    ):
        for command in commands:
            words = toolchain.program(command)
            known, source = tooling.helps.get(words[-1], ""), tooling.scripts.get(words[-1], "")
            for found in help_texts.complaints(command.argv[len(words) :], known, source):
                name = found.flag.lstrip("-")
                where = f"{table}.args.{name}" if name in stated else table
                yield Problem(where, f"{found.flag} of {_short(command)} {found.what}", found.hint)


def _short(command: Command) -> str:
    return toolchain.program(command)[-1].rsplit("/", 1)[-1]
