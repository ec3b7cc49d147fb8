"""TensorRT-LLM's PyTorch path: no engine. NVIDIA's llmapi model out of the image, and a model.yaml made from the recipe."""

import re
from collections.abc import Iterator, Mapping

from forge import trtllm
from forge.errors import Problem, StepError
from forge.plan import adapters, image_steps, llmapi_adapters, llmapi_rules
from forge.plan.hf_checkpoint import patched
from forge.plan.resolved import Resolved
from forge.plan.steps import Assemble, Entry, Link, Step, fetching
from forge.repository import config
from forge.schema.values import CallPatch, Names, Role, Scalar, TextFile
from forge.trtllm import patches
from forge.trtllm.llm_args import Assets, stated, write
from forge.trtllm.patches import Applied
from forge.trtllm.toolchain import LLMAPI, SKELETONS

ROLES = (Role.TENSORRT_LLM,)
"""The one model that takes text and gives text."""
YAML = "1/model.yaml"
BATCH = 0
"""NVIDIA's model.py takes one prompt a request and refuses a second dimension; LLM() batches requests itself."""

MODEL = "1/model.py"
STREAMING = CallPatch(
    f"{LLMAPI}/{MODEL}",
    "generate_async",
    start=2,
    keywords=("streaming",),
    given=("streaming",),
    why="the third position is lora_request, so nothing streams; TensorRT-LLM's PR 14079 of May 2026",
)
"""NVIDIA's model.py up to 1.2.1 says ``generate_async(prompt, SamplingParams(...), streaming)``."""

_COMPLETED = re.compile(r"^[ \t]*(#.*|max_batch_size\s*:\s*\d+|model_transaction_policy\s*:?\s*\{[^}]*\})", re.MULTILINE)
_OPEN = "max_batch_size: ${triton_max_batch_size}\nmodel_transaction_policy { decoupled: ${decoupled_mode} }\n"


def check(resolved: Resolved) -> Iterator[Problem]:
    """What this path cannot do for the recipe, and what its image's llmapi model refuses, as far as that has been read."""
    yield from llmapi_rules.problems(resolved)
    if not resolved.family.name:  # what every family checks, for who has none
        yield from trtllm.check(resolved.recipe, resolved.facts.checkpoint)
    yield from llmapi_adapters.check(resolved)
    if resolved.tooling is None:
        return
    if not resolved.tooling.llmapi:
        what = f"{resolved.facts.toolchain.image} holds no llmapi model ({LLMAPI})"
        yield Problem("runtime.image", what, 'NVIDIA\'s images do from "25.05" on')
    yield from config.check(_skeletons(resolved), _settings(resolved))
    yield from config.ignored(_skeletons(resolved), resolved.recipe.serve.parameters)


def entry(resolved: Resolved, names: Names) -> Entry:
    """The steps of one recipe: fetch, read the image, lay out. Nothing is converted, built, or made for one GPU."""
    recipe, facts = resolved.recipe, resolved.facts
    model, image = patched(resolved), image_steps.family_image(resolved)
    held = {"model": (model, model.promises)}
    if facts.draft:
        draft = fetching(f"{recipe.name}: draft", facts.draft)
        held["draft"] = (draft, draft.promises)
    folders = {need: f"{names.assets(recipe.name)}/{need}" for need in held}
    links = tuple(Link(need, path, f"{folders[need]}/{path}") for need, (_, files) in held.items() for path in files)
    yaml = TextFile(f"{names.of(Role.TENSORRT_LLM)}/{YAML}", _yaml(resolved, folders))
    links += adapters.links(resolved, names.assets(recipe.name))
    texts = (yaml, *adapters.tasks(resolved, names.assets(recipe.name)))
    made = (*((need, step) for need, (step, _) in held.items()), *adapters.steps(resolved))
    step = Step(
        f"{recipe.name}: entry",
        Assemble(names, _skeletons(resolved), _settings(resolved), links, texts),
        (("image", image), ("toolchain", image_steps.tools(resolved)), *made),
    )
    return Entry(recipe.name, names, step, None)


def notes(resolved: Resolved) -> tuple[str, ...]:
    """What the patch does to the image's model.py, and what may be wrong and only the image can tell."""
    models = [each.content for each in (resolved.tooling.llmapi if resolved.tooling else ()) if each.path == MODEL]
    told = (*llmapi_rules.doubts(resolved), *llmapi_adapters.notes(resolved))
    return (*(_patched(text).note for text in models), *told)


def lacks_engines(resolved: Resolved) -> Iterator[Problem]:
    """For a recipe of kind engine: whether its image has left engines behind, and what would move the recipe here."""
    if resolved.tooling is None or resolved.tooling.skeletons:
        return
    image = resolved.facts.toolchain.image
    what = f"{image} no longer holds what engines are built and served with ({SKELETONS})"
    if not resolved.tooling.llmapi:
        yield Problem("runtime.image", what, "take an image of NVIDIA's: tritonserver:TAG-trtllm-python-py3")
        return
    more = "".join(f"; {found.where}: {found.hint or found.what}" for found in llmapi_rules.problems(resolved))
    hint = f'move it to the PyTorch path: runtime.kind = "llmapi"{more}; or take an image up to "26.07"'
    yield Problem("runtime.kind", what, hint)


def _skeletons(resolved: Resolved) -> tuple[TextFile, ...]:
    """The image's files, less its model.yaml, the config made to be filled.

    The config leaves the batch and whether it streams to model.yaml, out of which model.py completes it; Triton lets it do so
    only without --disable-auto-complete-config, which NVIDIA's own launcher sets. So both are said in the config too.
    """
    held = resolved.tooling.llmapi if resolved.tooling else ()
    files = [each for each in held if each.path != YAML and not each.path.endswith(".pyc")]
    return tuple(TextFile(f"{Role.TENSORRT_LLM}/{each.path}", _opened(each)) for each in files)


def _opened(file: TextFile) -> str:
    if file.path == MODEL:
        return _patched(file.content).text
    return _OPEN + _COMPLETED.sub("", file.content) if file.path == config.CONFIG else file.content


def _patched(text: str) -> Applied:
    """model.py with ``STREAMING`` in it; as it is where it is of a Python that this one cannot read."""
    try:
        return patches.apply(STREAMING, text)
    except StepError as error:
        return Applied(text, applied=False, note=f"{STREAMING.file}: not looked at: {error.what}")


def _settings(resolved: Resolved) -> config.Settings:
    given: Mapping[str, Scalar] = resolved.recipe.serve.parameters.get(Role.TENSORRT_LLM, {})
    return {Role.TENSORRT_LLM: {"triton_max_batch_size": BATCH, "decoupled_mode": resolved.recipe.serve.stream, **given}}


def _yaml(resolved: Resolved, folders: Mapping[str, str]) -> str:
    """LLM()'s arguments, and under triton_config what the model itself wants to know of its config."""
    places = {need: f"{config.ROOT}/{folder}" for need, folder in folders.items()}
    arguments = stated(resolved.recipe, resolved.facts.toolchain, Assets(**places, lora=llmapi_adapters.stated(resolved)))
    return write({**arguments, "triton_config": {"max_batch_size": BATCH, "decoupled": resolved.recipe.serve.stream}})
