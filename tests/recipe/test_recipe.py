"""TOML to Recipe, and everything that can be wrong with it."""

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from forge.errors import Problem, RecipeError
from forge.recipe.reader import read, schema
from forge.schema.values import (
    COMMON_ROLES,
    BuildTable,
    ConvertTable,
    Recipe,
    Role,
    RuntimeKind,
    RuntimeTable,
    SamplingTable,
    ServeTable,
    Source,
    SourceKind,
)
from recipe_toml import toml

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
HEAD = 'name = "m"\n[source]\nhub = "owner/model"\n'


def _follows_the_schema(document: object) -> bool:
    try:
        jsonschema.validate(document, schema())
    except jsonschema.ValidationError:
        return False
    return True


def _wrong(text: str, runtime: RuntimeKind | None = None) -> dict[str, str]:
    """Key path -> the whole message, for a recipe that has to be refused."""
    with pytest.raises(RecipeError) as caught:
        read(text, "r.toml", runtime)
    return {problem.where.removeprefix("r.toml: "): str(problem) for problem in caught.value.problems}


def test_the_issues_example_is_read() -> None:
    recipe = read(
        """
        name = "gemma-2b-it"
        family = "gemma"
        [source]
        hub = "google/gemma-2b-it"
        revision = "main"
        [runtime]
        kind = "engine"
        image = "25.08"
        [convert]
        dtype = "bfloat16"
        args = {}
        [build]
        max_input_len = 3000
        max_seq_len = 4096
        [serve]
        kv_cache_free_gpu_mem_fraction = 0.5
        parameters.tensorrt_llm = { batch_scheduler_policy = "max_utilization" }
        [sampling]
        temperature = 1
        """,
        "r.toml",
    )
    assert recipe.source.kind is SourceKind.HUB
    assert recipe.build.max_seq_len == 4096
    assert recipe.serve.parameters == {Role.TENSORRT_LLM: {"batch_scheduler_policy": "max_utilization"}}
    assert isinstance(recipe.sampling.temperature, float)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_shipped_recipes_are_read_and_follow_the_schema(file: Path) -> None:
    recipe = read(file.read_text(encoding="utf-8"), str(file))
    assert recipe.name == file.stem
    document = json.loads(msgspec.json.encode(recipe))
    assert _follows_the_schema(document)
    assert read(toml(recipe), str(file)) == recipe


def test_problems_come_together_with_file_key_found_and_allowed() -> None:
    wrong = _wrong(
        """
        name = "../x"
        famly = "gemma"
        max_batch_size = 3
        [source]
        hub = "owner/model"
        path = "x"
        [convert]
        dtype = "bflot16"
        [build]
        max_batch_size = true
        [serve]
        kv_cache_free_gpu_mem_fraction = 1.5
        parameters.tensorrt_lm = {}
        """
    )
    assert list(wrong) == [
        "name",
        "famly",
        "max_batch_size",
        "convert.dtype",
        "build.max_batch_size",
        "serve.kv_cache_free_gpu_mem_fraction",
        "serve.parameters.tensorrt_lm",
        "source",
    ]
    assert wrong["name"].startswith("r.toml: name: found text '../x'; allowed: letters, digits")
    assert "did you mean 'family'?" in wrong["famly"]
    assert "did you mean 'build.max_batch_size'?" in wrong["max_batch_size"]
    assert "allowed: one of auto, bfloat16, float16, float32\n    did you mean 'bfloat16'?" in wrong["convert.dtype"]
    assert "found true; allowed: a whole number, at least 1" in wrong["build.max_batch_size"]
    assert "found the number 1.5; allowed: a number, above 0 and at most 1" in wrong["serve.kv_cache_free_gpu_mem_fraction"]
    assert "did you mean 'tensorrt_llm'?" in wrong["serve.parameters.tensorrt_lm"]
    assert "found hub and path; allowed: exactly one of hub, git, path, gguf, wheel" in wrong["source"]


@pytest.mark.parametrize(
    ("text", "at"),
    [("name = \n", "r.toml:1:8"), ("a = 1\n[b]]\n", "r.toml:2:4"), ("a = 1\na = 2\n", "r.toml:2:6")],
)
def test_broken_toml_is_told_with_line_and_column(text: str, at: str) -> None:
    assert any(where.startswith(at) for where in _wrong(text))


def test_what_is_nested_too_deep_is_no_recipe() -> None:
    assert "nested too deep" in _wrong("a = " + "[" * 100_000)["r.toml"]


def test_an_empty_text_lacks_name_and_source() -> None:
    assert list(_wrong("")) == ["name", "source"]
    assert "write [source] and its keys below it" in _wrong("")["source"]
    assert 'write one of them, as hub = "owner/name"' in _wrong('name = "m"\n[source]\n')["source"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("inf", "found inf, which is no finite number; allowed: a number, at least 0"),
        ("nan", "found nan, which is no finite number; allowed: a number, at least 0"),
        ('"0.5"', "found text '0.5'; allowed: a number, at least 0\n    write it without quotes: 0.5"),
        ('"-1"', "found text '-1'; allowed: a number, at least 0"),
        ('"warm"', "found text 'warm'; allowed: a number, at least 0"),
    ],
)
def test_a_number_that_is_none_is_told_as_written(value: str, said: str) -> None:
    wrong = _wrong(f'name = "m"\n[source]\nhub = "a/b"\n[sampling]\ntemperature = {value}\n')
    assert wrong["sampling.temperature"] == f"r.toml: sampling.temperature: {said}"


@pytest.mark.parametrize(
    ("table", "at"),
    [
        ("[source]\n", "source"),
        ('[source]\nwheel = "a==1"\n', "source.file"),
        ('[source]\nwheel = "a>=1"\nfile = "x"\n', "source.wheel"),
        ('[source]\nwheel = "-e==1"\nfile = "x"\n', "source.wheel"),
        ('[source]\nwheel = "a==1"\nfile = "../x"\n', "source.file"),
        ('[source]\nwheel = "a==1"\nfile = "/x"\n', "source.file"),
        ('[source]\nwheel = "a==1"\nfile = "a\\\\b"\n', "source.file"),
        ('[source]\nhub = "a/b"\nfile = "x"\n', "source.file"),
        ('[source]\npath = "x"\nrevision = "y"\n', "source.revision"),
        ('[source]\npath = "-x"\n', "source.path"),
        ('[source]\nhub = "-x"\n', "source.hub"),
        ('[source]\nhub = "a/../b"\n', "source.hub"),
        ('[source]\nhub = "a/b/c"\n', "source.hub"),
        ('[source]\nhub = "a/b\\n"\n', "source.hub"),
        ('[source]\nhub = "a/b"\nrevision = "--x"\n', "source.revision"),
        ('[source]\ngit = "--upload-pack=x"\n', "source.git"),
        ('[source]\ngit = "ext::sh -c x"\n', "source.git"),
        ('source = "a/b"\n', "source"),
    ],
)
def test_a_source_that_could_mislead_is_refused(table: str, at: str) -> None:
    assert list(_wrong(f'name = "m"\n{table}')) == [at]


@pytest.mark.parametrize("name", ["-x", "", ".", "..", "a/b", "a\\\\b", "a\\nb", "a\\n", "é", "a b", "x" * 129, "${x}"])
def test_a_name_that_is_no_safe_folder_name_is_refused(name: str) -> None:
    assert list(_wrong(f'name = "{name}"\n[source]\nhub = "a/b"\n')) == ["name"]


@pytest.mark.parametrize(
    ("rest", "at"),
    [
        ("[build]\nmax_beam_width = 2\n[sampling]\nbeam_width = 3\n", "sampling.beam_width"),
        ("[sampling]\nmax_tokens = 2048\n", "sampling.max_tokens"),
        ("[sampling]\nmax_tokens = 3\nmin_tokens = 4\n", "sampling.min_tokens"),
        ('[runtime]\nkind = "engine"\n[sampling]\nmin_p = 0.1\n', "sampling.min_p"),
        ('[draft]\nhub = "a/b"\n', "draft"),
        ('[runtime]\npackages = ["transformers"]\n', "runtime.packages"),
        ('[runtime]\nkind = "twin"\npackages = ["--index-url=x"]\n', "runtime.packages[0]"),
        ('[convert]\nargs = { output_dir = "/tmp" }\n', "convert.args.output_dir"),
        ("[convert]\nargs = { tp-size = 2 }\n", "convert.args.tp-size"),
        ('[convert]\nargs = { "-x" = 2 }\n', "convert.args.-x"),
        ('[convert]\nargs = { x = "a\\nb" }\n', "convert.args.x"),
        ("[build]\nargs = { max_batch_size = 2 }\n", "build.args.max_batch_size"),
        (
            '[build]\nargs = { use_paged_context_fmha = "disable" }\n[serve]\nenable_kv_cache_reuse = true\n',
            "serve.enable_kv_cache_reuse",
        ),
        (
            "[serve]\nparameters.tensorrt_llm_bls = { decoupled_mode = false }\n",
            "serve.parameters.tensorrt_llm_bls.decoupled_mode",
        ),
        (
            "[serve]\nparameters.tensorrt_llm = { triton_max_batch_size = 9 }\n",
            "serve.parameters.tensorrt_llm.triton_max_batch_size",
        ),
        ("[serve]\nparameters.tensorrt_llm = { x = inf }\n", "serve.parameters.tensorrt_llm.x"),
        ("[sampling]\ntemperature = nan\n", "sampling.temperature"),
        ("[sampling]\nseed = 9223372036854775808\n", "sampling.seed"),
        ("[sampling]\ntop_p = 0\n", "sampling.top_p"),
        ('[sampling]\nstop = "x"\n', "sampling.stop"),
        ("[sampling]\nmax_tokens = 1979-05-27\n", "sampling.max_tokens"),
        ('[runtime]\nimage = "--privileged"\n', "runtime.image"),
        ("[build.args.x]\ny = 1\n", "build.args.x"),
        ("[speculation]\nngram_size = 3\n", "speculation"),
        ('[convert]\nquantization = "fp8"\n', "convert.quantization"),
        ('[convert.calibration]\nhub = "a/texts"\n', "convert.calibration"),
        ('[convert]\nquantization = "fp8"\n[convert.calibration]\nsize = 3\n', "convert.calibration"),
        ('[convert]\nquantization = "fp8"\n[convert.calibration]\nhub = "a/b"\nsize = 0\n', "convert.calibration.size"),
        ('[convert]\nquantization = "fp8"\n[convert.calibration]\ngguf = "x.gguf"\n', "convert.calibration.gguf"),
        ('[convert]\nquantization = "fp8"\n[convert.calibration]\nhub = "abisee/cnn_dailymail"\n', "convert.calibration.hub"),
        ('[convert]\nargs = { calib_dataset = "x" }\n', "convert.args.calib_dataset"),
    ],
)
def test_a_value_or_contradiction_is_told_at_its_key(rest: str, at: str) -> None:
    assert list(_wrong(HEAD + rest)) == [at]


@pytest.mark.parametrize(
    ("variant", "rest", "at"),
    [
        ("medusa", '[draft]\nhub = "a/b"\n[convert]\ndtype = "float16"\n[build]\nmax_beam_width = 2\n', "variant"),
        (
            "medusa",
            '[draft]\nhub = "a/b"\n[convert]\ndtype = "float16"\n[sampling]\ntemperature = 0.5\n',
            "sampling.temperature",
        ),
        ("medusa", '[draft]\nhub = "a/b"\n', "convert.dtype"),
        ("eagle", "", "variant"),
        ("eagle", '[draft]\nhub = "a/b"\n[convert]\npp = 2\n', "convert.pp"),
        ("redrafter", '[convert]\ndtype = "float16"\n', "variant"),
        ("lookahead", '[draft]\nhub = "a/b"\n', "draft"),
        ("lookahead", "[build]\nmax_beam_width = 2\n", "variant"),
        ("lookahead", "[speculation]\nmax_draft_len = 5\n", "speculation.max_draft_len"),
        ("lookahead", "[speculation]\nwindow_size = 0\n", "speculation.window_size"),
        ("lookahead", "[build]\nargs = { max_draft_len = 5 }\n", "build.args.max_draft_len"),
        ("lookahead", "[serve.parameters.tensorrt_llm_draft]\nx = 1\n", "serve.parameters.tensorrt_llm_draft"),
        (
            "medusa",
            '[draft]\nhub = "a/b"\n[convert]\ndtype = "float16"\n[speculation]\nchoices = [[0], [-1]]\n',
            "speculation.choices[1][0]",
        ),
        ("eagle", '[draft]\nhub = "a/b"\n[build]\nargs = { use_paged_context_fmha = "disable" }\n', "variant"),
        ("draft-target", "", "variant"),
    ],
)
def test_a_variants_own_rules_are_kept(variant: str, rest: str, at: str) -> None:
    assert list(_wrong(f'variant = "{variant}"\n{HEAD}{rest}')) == [at]


def test_a_key_a_variant_ignores_is_told_with_its_own() -> None:
    wrong = _wrong(f'variant = "lookahead"\n{HEAD}[speculation]\nnum_beams = 2\n')
    assert (
        "lookahead does not read it\n    it reads window_size, ngram_size, verification_set_size"
        in wrong["speculation.num_beams"]
    )


def test_what_a_strangers_variant_reads_is_not_judged_here() -> None:
    assert read(f'variant = "theirs"\n{HEAD}[speculation]\nnum_beams = 2\n', "r.toml").speculation.num_beams == 2


def test_a_calibrations_texts_are_a_data_set_of_the_hub() -> None:
    texts = '[convert]\nquantization = "fp8"\n[convert.calibration]\nhub = "a/texts"\nsize = 64\n'
    calibration = read(HEAD + texts, "r.toml").convert.calibration
    assert calibration is not None
    assert (calibration.kind, calibration.address, calibration.size) == (SourceKind.HUB, "datasets/a/texts", 64)
    twin = '[runtime]\nkind = "twin"\n[convert]\nquantization = "fp8"\n'
    assert read(HEAD + twin, "r.toml").convert.quantization == "fp8"


def test_a_rule_over_a_broken_key_is_not_told() -> None:
    assert list(_wrong(HEAD + '[build]\nmax_seq_len = "4096"\nmax_input_len = 4000\n')) == ["build.max_seq_len"]


def test_the_command_lines_runtime_wins() -> None:
    text = HEAD + '[runtime]\nkind = "engine"\npackages = ["transformers>=4.55,<5"]\n'
    assert read(text, "r.toml", RuntimeKind.TWIN).runtime.kind is RuntimeKind.TWIN
    assert list(_wrong(text)) == ["runtime.packages"]


def test_weights_of_fewer_bits_are_the_twins_alone() -> None:
    assert read(HEAD + '[runtime]\nkind = "twin"\nweights = "int8"\n', "r.toml").runtime.weights == "int8"
    assert list(_wrong(HEAD + '[runtime]\nkind = "vllm"\nweights = "int8"\n')) == ["runtime.weights"]
    assert list(_wrong(HEAD + '[runtime]\nkind = "twin"\nweights = "int3"\n')) == ["runtime.weights"]


def test_a_byte_order_mark_and_windows_lines_are_harmless() -> None:
    assert read("\ufeff" + HEAD.replace("\n", "\r\n"), "r.toml").name == "m"


def test_the_schema_closes_every_table_and_knows_the_sources() -> None:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    definitions = msgspec.convert(made["$defs"], dict[str, dict[str, object]])
    assert made["additionalProperties"] is False
    assert all(table["additionalProperties"] is False for table in definitions.values() if "properties" in table)
    assert "\\Z" not in json.dumps(made)
    assert not _follows_the_schema({"name": "m", "source": {"hub": "a/b", "path": "x"}})
    assert not _follows_the_schema({"name": "m", "source": {"wheel": "a==1"}})
    assert not _follows_the_schema({"name": "m", "source": {"hub": "a/b"}, "famly": "x"})
    assert _follows_the_schema({"name": "m", "source": {"hub": "a/b"}})


NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z")
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
SCALARS = st.one_of(TEXT, st.integers(-(2**63), 2**63 - 1), st.floats(-1e18, 1e18), st.booleans())
FLAGS = st.dictionaries(
    st.from_regex(r"\Aprobe(_[a-z0-9]{1,5})?\Z"),
    SCALARS.filter(lambda value: not str(value).startswith(("/", ".", "~"))),
    max_size=3,
)
SOURCES = st.one_of(
    st.builds(Source, hub=st.just("owner/model"), revision=st.sampled_from(["main", "refs/pr/1", "a" * 40])),
    st.builds(Source, path=st.from_regex(r"\A[a-z./ '\"é]{1,20}\Z"), allow_pickle=st.booleans()),
    st.just(Source(wheel="a-b==1.0.post1", file="a/b c.gguf")),
)
RECIPES_ANY = st.builds(
    Recipe,
    name=NAMES,
    source=SOURCES,
    family=st.none() | NAMES,
    runtime=st.builds(RuntimeTable, kind=st.sampled_from(RuntimeKind), image=st.sampled_from(["25.08", "a.b/c:d"])),
    convert=st.builds(ConvertTable, tp=st.integers(1, 64), args=FLAGS),
    build=st.builds(BuildTable, max_input_len=st.integers(1, 2048), max_num_tokens=st.none() | st.just(7), args=FLAGS),
    serve=st.builds(
        ServeTable,
        kv_cache_free_gpu_mem_fraction=st.floats(0.001, 1),
        parameters=st.dictionaries(st.sampled_from(COMMON_ROLES), FLAGS, max_size=2),
    ),
    sampling=st.builds(
        SamplingTable,
        temperature=st.none() | st.floats(0, 10),
        seed=st.none() | st.integers(0, 2**63 - 1),
        stop=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), max_size=3).map(
            tuple
        ),
    ),
)


@settings(max_examples=150)
@given(RECIPES_ANY)
def test_a_recipe_written_down_is_read_back_the_same(recipe: Recipe) -> None:
    assert read(toml(recipe), "r.toml") == recipe


JUNK = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2))
KEYS = st.sampled_from(["name", "source", "build", "serve", "sampling", "tp", "parameters", "stop", "args", "hub", "x"])


@settings(max_examples=150)
@given(st.dictionaries(KEYS, st.dictionaries(KEYS, JUNK, max_size=3) | JUNK, max_size=4))
def test_any_document_is_a_recipe_or_refused_in_words(document: dict[str, object]) -> None:
    lines = "\n".join(f"{json.dumps(key)} = {_toml(value)}" for key, value in document.items())
    problems: tuple[Problem, ...] = ()
    try:
        recipe = read(lines, "r.toml")
        assert msgspec.convert(msgspec.to_builtins(recipe), Recipe) == recipe
    except RecipeError as error:
        problems = error.problems
    assert all(problem.where.startswith("r.toml") and problem.what for problem in problems)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        pairs = msgspec.convert(value, dict[str, object])
        return "{" + ", ".join(f"{_toml(key)} = {_toml(inner)}" for key, inner in pairs.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, msgspec.convert(value, list[object]))) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
