"""Triton's repository layout and config.pbtxt. Pure: text in, text out.

A skeleton is a repository not yet filled: ``<role>/config.pbtxt`` with ``${placeholders}`` under NVIDIA's names, and what
stands in ``<role>/1/``. Filling one ends in a protobuf message, and what is written comes out of that message.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources

from msgspec import Struct

from forge import protobuf
from forge.errors import Problem, RepositoryError, meant
from forge.repository.bls import FILE as SUBCLASS
from forge.schema.values import COMMON_ROLES, ConfigOverrides, Names, Recipe, Role, RuntimeKind, Scalar, TextFile, Tokenizer

ROOT = "/forge/repository"
"""Where a repository stands inside a container; an entry's configs name their assets under it."""

CONFIG = "config.pbtxt"

Settings = Mapping[Role, Mapping[str, Scalar]]

ALIASES = {
    "gpt_model_type": "batching_strategy",
    "gpt_model_path": "engine_dir",
    "encoder_model_path": "encoder_engine_dir",
}
"""Keys under ``parameters`` whose placeholder has another name, in every skeleton from 0.14 to 1.2."""

DEFAULTS = {"max_queue_size": "0", "max_queue_delay_microseconds": "0"}
"""Unquoted placeholders that NVIDIA's fill_template.py fills when nobody does."""

NEEDED = ("triton_backend", "engine_dir", "batching_strategy", "tokenizer_dir")
"""Quoted placeholders that no model works without, though the file parses."""

OPTIONAL = (
    ("tensorrt_llm", "tokenizer_dir"),  # read for guided decoding, and by the twin to cut streams between characters
    ("preprocessing", "engine_dir"),  # read for the vocabulary's size, and for vision models
)

DATA_TYPES = {
    "logits_datatype": "TYPE_FP32",
    "encoder_input_features_data_type": "TYPE_FP16",
    "prompt_embedding_table_data_type": "TYPE_FP16",
}
"""Types of tensors that not every skeleton declares."""

EMPTY: dict[Role, dict[str, Scalar]] = {
    Role.TENSORRT_LLM: {"guided_decoding_backend": "", "xgrammar_tokenizer_info_path": ""},
    Role.PREPROCESSING: {"multimodal_model_path": "", "visual_model_path": ""},  # the latter up to 0.18
}
"""Parameters that NVIDIA's code reads without asking whether they are there, and takes for unset when they are empty.

Read in model_instance_state.cc (getGuidedDecodingConfigFromParams) and preprocessing/1/model.py, TensorRT-LLM 0.14 to 1.2.
"""

PASSED_OVER = frozenset(
    {
        *DATA_TYPES,
        *(key for keys in EMPTY.values() for key in keys),
        "engine_dir",
        "tokenizer_dir",
        "skip_special_tokens",
        "enable_kv_cache_reuse",
        "exclude_input_in_output",
        "accumulate_tokens",
    }
    | {
        "max_queue_delay_microseconds",
        "max_queue_size",
        "max_queued",
        "max_input_len",
        "max_prompt_chars",
        "max_words",
        "max_word_chars",
    }
)
"""What forge's defaults set although some skeletons do not ask for it: set where asked for, passed over elsewhere."""

STREAMS_PER_INSTANCE = 24
"""How many requests one instance of forge's own tensorrt_llm_bls carries at once (skeletons/tensorrt_llm_bls.py)."""
IMPORTED: Mapping[Role, tuple[str, ...]] = {Role.BLS: ("alternatives.py", "detokenizer.py", "pipe.py", "whole.py")}
"""What stands beside the model.py of forge's own models, which import it."""

_PIECES = re.compile(
    r"""(?P<comment>\#[^\n]*) | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*') | \$\{(?P<bare>\w+)\}""", re.X
)
_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
_PARAMETER = re.compile(r"""\bparameters\s*:?\s*\{\s*key\s*:\s*["'](\w+)["']""")
_TOKEN = re.compile(r"[A-Za-z0-9_.+-]+")


class _Placeholder(Struct, frozen=True):
    name: str
    quoted: bool


def placeholders(skeleton: str) -> tuple[str, ...]:
    """The names that ``skeleton`` wants filled, in order of appearance; comments do not count."""
    return tuple(dict.fromkeys(found.name for found in _scan(skeleton)))


@cache
def skeletons() -> tuple[TextFile, ...]:
    """forge's own: the five models in Triton's Python backend, on the tensors of TensorRT-LLM 0.20 and later."""
    folder = resources.files("forge.repository.skeletons")
    files: list[TextFile] = []
    for role in COMMON_ROLES:
        files.append(TextFile(f"{role}/{CONFIG}", (folder / f"{role}.pbtxt").read_text(encoding="utf-8")))
        modules = {"model.py": folder / f"{role}.py"} | {name: folder / name for name in IMPORTED.get(role, ())}
        code = [TextFile(f"{role}/1/{name}", file.read_text("utf-8")) for name, file in modules.items() if file.is_file()]
        files += code or [TextFile(f"{role}/1/.gitkeep", "")]
    return tuple(files)


def settings(
    recipe: Recipe, overrides: ConfigOverrides, tokenizer: Tokenizer | None = None, names: Names | None = None
) -> Settings:
    """What every placeholder of a recipe's five models is set to: the recipe over its plugins over forge's defaults.

    ``names`` say where its assets stand; beside all models where nobody says.
    """
    assets = f"{ROOT}/{(names or Names()).assets(recipe.name)}"
    chosen = ConfigOverrides(_defaults(recipe, tokenizer or Tokenizer(), assets))
    for layer in (overrides, ConfigOverrides(recipe.serve.parameters)):
        chosen |= ConfigOverrides({role: _without_aliases(values) for role, values in layer.roles.items()})
    return chosen.roles


def check(skeletons: tuple[TextFile, ...], settings: Settings) -> tuple[Problem, ...]:
    """What would keep ``settings`` from filling ``skeletons``, seen from the text alone; by the recipe's keys."""
    found = [
        problem
        for role, text in _configs(skeletons)
        for problem in problems(f"serve.parameters.{role}", text, settings.get(role, {}), role)
    ]
    decoupled = {
        role: _text(settings[role]["decoupled_mode"]).lower()
        for role in (Role.TENSORRT_LLM, Role.BLS)
        if "decoupled_mode" in settings.get(role, {})
    }
    if len(set(decoupled.values())) > 1:
        stated = ", ".join(f"{role} says {value}" for role, value in decoupled.items())
        what = f"decoupled_mode has to be the same in both models: {stated}"
        found.append(Problem("serve.parameters", what, "leave both out and set serve.stream, which sets them together"))
    return tuple(found)


def ignored(skeletons: tuple[TextFile, ...], stated: Settings) -> tuple[Problem, ...]:
    """What a person says by name and no config has, although forge's own defaults may say it to all of them."""
    return tuple(
        _unknown(f"serve.parameters.{role}", key, _known(text))
        for role, text in _configs(skeletons)
        for key in _without_aliases(stated.get(role, {}))
        if key in PASSED_OVER and key not in _known(text)
    )


def problems(where: str, skeleton: str, values: Mapping[str, Scalar], role: Role | None = None) -> tuple[Problem, ...]:
    """The same for one config: unknown keys, values that cannot stand where they would, placeholders left open."""
    wanted = tuple(_scan(skeleton))
    bare = {each.name for each in wanted if not each.quoted}
    known = _known(skeleton)
    given = _without_aliases(values)
    found = [_unknown(where, key, known) for key in given if key not in known and (key not in PASSED_OVER or not wanted)]
    for key, value in given.items():
        if complaint := _unfit(_text(value), bare=key in bare):
            found.append(Problem(f"{where}.{key}", complaint))
    for name in dict.fromkeys(each.name for each in wanted):
        needed = name in bare or (name in NEEDED and (str(role), name) not in OPTIONAL)
        if needed and name not in given and name not in DEFAULTS:
            found.append(Problem(f"{where}.{name}", "is not set, and the model cannot be loaded without it"))
    return tuple(found)


def fill(skeleton: str, values: Mapping[str, Scalar], role: Role | None = None) -> str:
    """``skeleton`` with every placeholder set or gone, written back from its message.

    A parameter that nothing sets is dropped: Triton's backends take an unfilled one for absent. Raises RepositoryError.
    """
    if complaints := problems(str(role or "config"), skeleton, values, role):
        raise RepositoryError("\n".join(map(str, complaints)))
    given = {**DEFAULTS, **{key: _text(value) for key, value in _without_aliases(values).items()}}
    config = _parse(_PIECES.sub(lambda piece: _filled(piece, given), skeleton))
    for key in [key for key, value in config.parameters.items() if _PLACEHOLDER.search(value.string_value)]:
        del config.parameters[key]
    literal = set(_PARAMETER.findall(skeleton)) - set(placeholders(skeleton)) - set(ALIASES)
    for key in literal & set(given):
        config.parameters[key].string_value = given[key]
    if role is Role.BLS and "max_queued" in given and not config.HasField("dynamic_batching"):
        # NVIDIA's has none, and each request that waits holds a payload of Triton's: thousands break it (rule bls-queue).
        config.dynamic_batching.preferred_batch_size.append(1)
        config.dynamic_batching.default_queue_policy.max_queue_size = int(given["max_queued"])
    text = protobuf.write(config)
    if left := _PLACEHOLDER.findall(text):
        raise RepositoryError(f"placeholders stay unfilled outside of parameters: {', '.join(left)}", where=config.name)
    return text


def rename(text: str, names: Names, role: Role, file: str = "") -> str:
    """A filled config under the names of its own repository: its name, and the siblings that ensemble and bls ask.

    ``file`` is the Python file to load instead of model.py. Ensembles are renamed from plain names only.
    """
    config = _parse(text)
    config.name = names.of(role)
    if file:
        config.default_model_filename = file
    if role is Role.ENSEMBLE:
        folders = {str(each): name for each, name in names.all().items()}
        for step in config.ensemble_scheduling.step:
            step.model_name = folders.get(step.model_name, step.model_name)
    if role is Role.BLS:
        drafts = (Role.DRAFT,) if Role.DRAFT in names.roles else ()
        for sibling in (Role.TENSORRT_LLM, Role.PREPROCESSING, Role.POSTPROCESSING, *drafts):
            config.parameters[f"{sibling}_model_name"].string_value = names.of(sibling)
        named = f"{Role.DRAFT}_model_name"
        if not drafts and named in config.parameters and config.parameters[named].string_value == Role.DRAFT:
            del config.parameters[named]  # the twin of an engine with a draft has none: the name of nobody
    return protobuf.write(config)


def relocate(text: str, root: str, before: str = ROOT) -> str:
    """A filled config, or llmapi's model.yaml, whose assets stand under ``root`` and no longer under ``before``."""
    if text.startswith("{"):  # forge writes model.yaml as JSON, in which a path is a whole scalar
        return text.replace(f"{_quoted(before)}/", f"{_quoted(root)}/")
    config = _parse(text)
    for value in config.parameters.values():
        if value.string_value == before or value.string_value.startswith(f"{before}/"):
            value.string_value = root.rstrip("/") + value.string_value.removeprefix(before)
    return protobuf.write(config)


def _quoted(path: str) -> str:
    """The beginning of a JSON string with the path."""
    return json.dumps(path.rstrip("/"), ensure_ascii=False)[:-1]


def render(names: Names, skeletons: tuple[TextFile, ...], settings: Settings) -> tuple[TextFile, ...]:
    """The folders of one recipe's models: each config filled and named, every other file of the skeletons as it is."""
    files: list[TextFile] = []
    loaded = {file.path.partition("/")[0]: SUBCLASS for file in skeletons if file.path.endswith(f"/1/{SUBCLASS}")}
    for file in skeletons:
        top, _, rest = file.path.partition("/")
        role = Role(top)
        content = file.content
        if rest == CONFIG:
            filled = fill(content, settings.get(role, {}), role)
            content = rename(filled, names, role, loaded.get(top, ""))
        files.append(TextFile(f"{names.of(role)}/{rest}", content))
    return tuple(files)


def _defaults(recipe: Recipe, tokenizer: Tokenizer, assets: str) -> dict[Role, dict[str, Scalar]]:
    build = recipe.build
    batch: dict[str, Scalar] = {"triton_max_batch_size": build.max_batch_size}
    text: dict[str, Scalar] = {**batch, "tokenizer_dir": f"{assets}/tokenizer"}
    types = dict[str, Scalar](DATA_TYPES)
    carriers, queue = _queue(recipe)
    # NVIDIA's postprocessing decodes what it is given and nothing else: token by token blanks and characters are lost. Its bls
    # accumulates one beam only (lib/decode.py, 0.12 to 1.2) and fails every other request; forge's own says what is new.
    keeps = recipe.runtime.kind is RuntimeKind.ENGINE and recipe.serve.stream and build.max_beam_width == 1
    engine = {**text, **queue, **types, **_engine(recipe, assets)}
    return {
        Role.ENSEMBLE: {**batch, "logits_datatype": types["logits_datatype"]},
        Role.PREPROCESSING: {
            **EMPTY[Role.PREPROCESSING],
            **text,
            **queue,
            "engine_dir": engine["engine_dir"],
            "add_special_tokens": tokenizer.add_special_tokens,
            "preprocessing_instance_count": 1,
            "max_input_len": build.max_input_len,
            **recipe.limits.of_texts,
        },
        Role.TENSORRT_LLM: engine,
        Role.POSTPROCESSING: {
            **text,
            "skip_special_tokens": tokenizer.skip_special_tokens,
            "postprocessing_instance_count": 1,
        },
        Role.BLS: {
            **text,
            **types,
            "decoupled_mode": recipe.serve.stream,
            "skip_special_tokens": tokenizer.skip_special_tokens,
            "accumulate_tokens": keeps,
            "bls_instance_count": carriers,
            "max_queued": recipe.limits.max_queued,
        },
        Role.DRAFT: engine,
    }


def _queue(recipe: Recipe) -> tuple[int, dict[str, Scalar]]:
    """Instances of bls; and what Triton's queue before the models beside it is told."""
    # NVIDIA's tensorrt_llm_bls is blocked by the request that it carries.
    streams = STREAMS_PER_INSTANCE if recipe.runtime.kind is RuntimeKind.TWIN else 1
    carriers = recipe.serve.instances or -(-recipe.build.max_batch_size // streams)
    # Besides those that wait there is room for all that bls carries: it is to refuse a request before its siblings do.
    most = recipe.limits.max_queued + carriers * streams
    return carriers, {
        "max_queue_delay_microseconds": recipe.serve.max_queue_delay_microseconds,
        "max_queue_size": most,
    }


def _engine(recipe: Recipe, assets: str) -> dict[str, Scalar]:
    """What the model over an engine is told; a draft's engine is one more of its kind."""
    serve = recipe.serve
    return {
        **EMPTY[Role.TENSORRT_LLM],
        "decoupled_mode": serve.stream,
        "triton_backend": "tensorrtllm",
        "batching_strategy": "inflight_fused_batching",
        "engine_dir": f"{assets}/engines",
        "max_beam_width": recipe.build.max_beam_width,
        "kv_cache_free_gpu_mem_fraction": serve.fraction,
        "enable_kv_cache_reuse": serve.enable_kv_cache_reuse,
        "exclude_input_in_output": True,
    }


def _without_aliases(values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {ALIASES.get(key, key): value for key, value in values.items()}


def _configs(skeletons: tuple[TextFile, ...]) -> Iterator[tuple[Role, str]]:
    for file in skeletons:
        top, _, rest = file.path.partition("/")
        if rest == CONFIG:
            yield Role(top), file.content


def _known(skeleton: str) -> set[str]:
    """The keys that a config can be given, by their placeholders or as parameters; in a filled one the latter alone."""
    return {each.name for each in _scan(skeleton)} | set(_PARAMETER.findall(skeleton))


def _scan(skeleton: str) -> Iterator[_Placeholder]:
    for piece in _PIECES.finditer(skeleton):
        if piece["bare"]:
            yield _Placeholder(piece["bare"], quoted=False)
        for name in _PLACEHOLDER.findall(piece["string"] or ""):
            yield _Placeholder(name, quoted=True)


def _filled(piece: re.Match[str], given: Mapping[str, str]) -> str:
    """A comment goes; a string takes values escaped; a bare placeholder takes its value as it is (it was checked)."""
    if piece["comment"]:
        return ""
    if piece["bare"]:
        return given[piece["bare"]]
    return _PLACEHOLDER.sub(lambda gap: _escaped(given[gap[1]]) if gap[1] in given else gap[0], piece["string"])


def _escaped(value: str) -> str:
    """As protobuf's text format writes it: printable ASCII, everything else by its UTF-8 bytes in octal."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b"\"'\\" else f"\\{byte:03o}" for byte in value.encode())


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unfit(value: str, *, bare: bool) -> str:
    if value != value.strip():
        return f"{value[:80]!r} begins or ends with a blank, which the model would take for a part of it"
    if "${" in value:
        return f"{value[:80]!r} is itself a placeholder"
    if bare and not _TOKEN.fullmatch(value):
        return f"{value!r} is no number, true, false or TYPE_..., and nothing else can stand there"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{value!r} is no Unicode text"
    return ""


def _unknown(where: str, key: str, known: Iterable[str]) -> Problem:
    hint = meant(key, known, f"it has: {', '.join(sorted(known)) or 'none'}")
    return Problem(f"{where}.{key}", "the model's config.pbtxt has no such parameter", hint)


def _parse(text: str) -> protobuf.ModelConfig:
    try:
        return protobuf.parse(text)
    except protobuf.Unreadable as error:
        raise RepositoryError(f"config.pbtxt is no ModelConfig in protobuf's text format: {error}") from error
