"""A recipe's variant as vLLM's ``speculative_config``, and what of a variant vLLM has nothing for. Pure.

Source: vLLM's config/speculative.py. Guesses are a chain there: no variant has a tree.
"""

from collections.abc import Iterator

from msgspec.structs import asdict

from forge.errors import Problem
from forge.plan.resolved import Resolved
from forge.plan.steps import Link, Step, fetching
from forge.schema import tags
from forge.schema.values import SourceKind, SpeculationTable
from forge.schema.vllm_known import VllmKnown

CONFIG = "speculative_config"
FOLDER = "draft"
"""Under a recipe's assets: the second checkpoint."""
_READ = {
    "draft-target": ("max_draft_len",),
    "eagle": ("max_draft_len",),
    "medusa": ("num_medusa_heads",),
    "ngram": ("max_draft_len", "ngram_size"),
}
"""Variants that vLLM has -> the keys of [speculation] that say something to it."""
_GUESSES = {"draft-target": 10, "eagle": 4, "medusa": 4, "ngram": 4}
"""Tokens that are guessed at once where nobody says how many."""
_WITHOUT_DRAFTS = ((0, 10), (0, 14))
"""From which vLLM on, and up to which, a draft model is refused ("not supported yet"): its second engine had none at first."""


def check(resolved: Resolved, known: VllmKnown, version: str) -> Iterator[Problem]:
    """What keeps vLLM from guessing as the recipe wants it."""
    recipe, variant = resolved.recipe, resolved.recipe.variant
    if variant is None:
        return
    if variant not in _READ:
        what = f"vLLM has no {variant}: it has {', '.join(_READ)}"
        hint = 'take it away with [speculation]; or say variant = "ngram", which needs no second checkpoint'
        yield Problem("variant", what, hint)
        return
    if known.arguments and CONFIG not in known.arguments:
        yield Problem("variant", f"vLLM {version} has no {CONFIG}", "take a newer one")
    if variant == "draft-target" and _WITHOUT_DRAFTS[0] <= tags.version(version) < _WITHOUT_DRAFTS[1]:
        yield Problem("variant", f"vLLM {version} takes no draft model", "take vLLM 0.15 or newer; or an EAGLE head, or ngram")
    unset, table = asdict(SpeculationTable()), asdict(recipe.speculation)
    for key, value in table.items():
        if value != unset[key] and key not in _READ[variant]:
            hint = f"take it away; vLLM's {variant} reads {', '.join(_READ[variant])}"
            yield Problem(f"speculation.{key}", "says nothing to vLLM, which guesses one token after the other", hint)
    yield from _draft(resolved, known)


def _draft(resolved: Resolved, known: VllmKnown) -> Iterator[Problem]:
    """The second checkpoint: files that vLLM reads, of an architecture that it has."""
    draft, config = resolved.facts.draft, resolved.facts.draft_checkpoint
    if draft is None:
        return
    if draft.kind in (SourceKind.GGUF, SourceKind.WHEEL):
        yield Problem(f"draft.{draft.kind}", "is not converted for vLLM", "name a checkpoint with safetensors")
    own = resolved.facts.checkpoint.config.get("vocab_size")
    theirs = config.config.get("vocab_size")
    if resolved.recipe.variant == "draft-target" and isinstance(own, int) and isinstance(theirs, int) and own != theirs:
        what = f"its vocabulary has {theirs} tokens, and that of [source] {own}: a draft's token has to mean the same"
        yield Problem("draft", what, "name a draft of the same family and vocabulary")
    if resolved.recipe.variant == "draft-target" and (refusal := known.refusal(config)):
        yield Problem("draft", f"vLLM {refusal}", "name another draft")


def stated(resolved: Resolved, draft: str) -> dict[str, object]:
    """``speculative_config``; empty without a variant. ``draft`` is where the second checkpoint stands."""
    recipe, table = resolved.recipe, resolved.recipe.speculation
    match recipe.variant:
        case "draft-target":
            words: dict[str, object] = {"method": "draft_model", "model": draft}
        case "eagle":
            words = {"method": _eagle(resolved), "model": draft}
        case "medusa":
            words = {"method": "medusa", "model": draft}
        case "ngram":
            words = {"method": "ngram"}
            if table.ngram_size:
                words["prompt_lookup_max"] = table.ngram_size
        case _:
            return {}
    count = table.num_medusa_heads if recipe.variant == "medusa" else table.max_draft_len
    return words | {"num_speculative_tokens": count or _GUESSES[recipe.variant]}


def _eagle(resolved: Resolved) -> str:
    """EAGLE-3's heads are told by their config: vLLM goes by the name of the folder, which says nothing here."""
    config = resolved.facts.draft_checkpoint.config
    third = "draft_vocab_size" in config or any("eagle3" in str(each).lower() for each in config.values())
    return "eagle3" if third else "eagle"


def steps(resolved: Resolved) -> tuple[tuple[str, Step], ...]:
    """The second checkpoint, fetched, where there is one."""
    draft = resolved.facts.draft
    if draft is None:
        return ()
    return (("draft", fetching(f"{resolved.recipe.name}: draft", draft)),)


def links(resolved: Resolved, assets: str) -> tuple[Link, ...]:
    """Its files under ``assets``."""
    files = resolved.facts.draft.files if resolved.facts.draft else ()
    return tuple(Link("draft", file.path, f"{assets}/{FOLDER}/{file.path}") for file in files)
