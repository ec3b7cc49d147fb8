"""Draft and target: a small model of the same family and vocabulary guesses, the large one checks. Two engines.

Both prompts begin alike again and again, so both engines keep their cache between requests, and answers hold the prompt:
the bls model, which carries guesses from one to the other, counts on both.
"""

from collections.abc import Mapping

from forge import Checkpoint, Command, ConfigOverrides, Engine, Problem, Recipe, Role, Scalar, hookimpl, trtllm

FORGE_API = 2
DRAFT_LEN = 10
TARGET, DRAFT = "target", "draft"
NEEDED: Mapping[str, Scalar] = {"enable_kv_cache_reuse": True, "exclude_input_in_output": False}


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint, draft: Checkpoint) -> tuple[Problem, ...]:
    return (
        *trtllm.check_decoder(checkpoint, "draft-target"),
        *trtllm.check_vocabulary(checkpoint, draft),
        *(Problem(each.where, f"for the draft: {each.what}", each.hint) for each in trtllm.check(recipe, draft)),
        *_length(recipe, draft),
        *_parameters(recipe),
    )


def _length(recipe: Recipe, draft: Checkpoint) -> tuple[Problem, ...]:
    wanted, longest = recipe.build.max_seq_len, draft.config.get("max_position_embeddings")
    if not isinstance(longest, int) or wanted <= longest:
        return ()
    what = f"is {wanted}, and the draft was trained for {longest} tokens"
    return (Problem("build.max_seq_len", what, f"set it to {longest} or less"),)


def _parameters(recipe: Recipe) -> tuple[Problem, ...]:
    """The recipe's own parameters win over a plugin's, and could undo what the variant lives on."""
    return tuple(
        Problem(f"serve.parameters.{role}.{name}", f"has to be {str(value).lower()} for draft-target", "take it away")
        for role in (Role.TENSORRT_LLM, Role.DRAFT)
        for name, value in NEEDED.items()
        if str(recipe.serve.parameters.get(role, {}).get(name, value)).lower() != str(value).lower()
    )


@hookimpl
def forge_convert_commands(base: tuple[Command, ...]) -> tuple[Command, ...]:
    """What the family does for its model, once for each of the two."""
    return (
        *trtllm.moved(base, {trtllm.OUT: f"{trtllm.OUT}/{TARGET}"}),
        *trtllm.moved(base, {trtllm.MODEL: trtllm.DRAFT, trtllm.OUT: f"{trtllm.OUT}/{DRAFT}"}),
    )


@hookimpl
def forge_build_commands(recipe: Recipe, base: tuple[Command, ...]) -> tuple[Command, ...]:
    checking: dict[str, Scalar] = {
        "speculative_decoding_mode": "draft_tokens_external",
        "max_draft_len": recipe.speculation.max_draft_len or DRAFT_LEN,
        "use_paged_context_fmha": True,
    }
    return (
        *trtllm.extended(_below(base, TARGET), checking),
        *trtllm.extended(_below(base, DRAFT), {"use_paged_context_fmha": True}),
    )


def _below(base: tuple[Command, ...], folder: str) -> tuple[Command, ...]:
    places = {trtllm.CHECKPOINT: f"{trtllm.CHECKPOINT}/{folder}", trtllm.OUT: f"{trtllm.OUT}/{folder}"}
    return trtllm.moved(base, places)


@hookimpl
def forge_engines() -> tuple[Engine, ...]:
    return (Engine(TARGET), Engine(DRAFT, Role.DRAFT))


@hookimpl
def forge_config_overrides() -> ConfigOverrides:
    names: dict[str, Scalar] = {
        "tensorrt_llm_model_name": str(Role.TENSORRT_LLM),
        "tensorrt_llm_draft_model_name": str(Role.DRAFT),
    }
    return ConfigOverrides({Role.TENSORRT_LLM: NEEDED, Role.DRAFT: NEEDED, Role.BLS: names})
