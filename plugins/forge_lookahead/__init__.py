"""Lookahead decoding: the model guesses n-grams for itself, so there is no second checkpoint.

The three sizes stand in the engine, as the longest draft that they can make, and in config.pbtxt; forge keeps them alike.
"""

from forge import Checkpoint, Command, ConfigOverrides, Problem, Recipe, Role, hookimpl, trtllm

FORGE_API = 2
WINDOW, NGRAM, VERIFICATION = 7, 7, 7


def sizes(recipe: Recipe) -> tuple[int, int, int]:
    """Window, n-gram and verification set."""
    table = recipe.speculation
    checked = VERIFICATION if table.verification_set_size is None else table.verification_set_size
    return table.window_size or WINDOW, table.ngram_size or NGRAM, checked


def draft_length(window: int, ngram: int, verification: int) -> int:
    """Tokens of the longest draft; what the engine has to have room for."""
    return (0 if ngram == 1 else ngram - 2) + (window - 1 + verification) * (ngram - 1)


@hookimpl
def forge_check(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Problem, ...]:
    problems = trtllm.check_decoder(checkpoint, "lookahead")
    window, ngram, verification = sizes(recipe)
    if draft_length(window, ngram, verification) < 1:
        what = f"is {ngram}: with a window of {window} and a verification set of {verification} nothing is ever guessed"
        problems += (Problem("speculation.ngram_size", what, f"take {NGRAM}, or leave the variant away"),)
    return problems


@hookimpl
def forge_build_commands(recipe: Recipe, base: tuple[Command, ...]) -> tuple[Command, ...]:
    length = draft_length(*sizes(recipe))
    return trtllm.extended(base, {"speculative_decoding_mode": "lookahead_decoding", "max_draft_len": length})


@hookimpl
def forge_config_overrides(recipe: Recipe) -> ConfigOverrides:
    window, ngram, verification = sizes(recipe)
    return ConfigOverrides(
        {
            Role.TENSORRT_LLM: {
                "decoding_mode": "lookahead",
                "lookahead_window_size": window,
                "lookahead_ngram_size": ngram,
                "lookahead_verification_set_size": verification,
            }
        }
    )
