"""All verdicts of one verification, the stages that are guilty, and what to do next. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from forge.verify.judge import Outcome, Stage, Verdict
from forge.verify.tolerances import Tolerance

NEXT = {
    Stage.TOKENIZER: (
        "compare the tokenizer folder in the repository with the checkpoint's (tokenizer.json, tokenizer_config.json), and "
        "add_special_tokens in preprocessing/config.pbtxt; end tokens stand in tokenizer_config.json (eos_token), "
        "generation_config.json and config.json; `forge check` looks at both; build again to lay them anew. vLLM's models read "
        "all of that from the checkpoint in _assets"
    ),
    Stage.ENGINE: (
        "the weights or the way they are computed are not the checkpoint's: look at the recipe's dtype and quantization, at "
        "[convert] args (of vLLM: at the arguments in 1/model.json), and whether the engine was built from this commit; `forge "
        "cache verify` finds damaged files"
    ),
    Stage.DETOKENIZER: (
        "compare postprocessing's and tensorrt_llm_bls's model.py and tokenizer_dir with what forge lays; skip_special_tokens "
        "has to be the same in both; what only streams say wrongly wants accumulate_tokens = true in tensorrt_llm_bls; build "
        "again to lay them anew; vLLM decodes by tokenizer.json in _assets"
    ),
    Stage.TRANSPORT: (
        "the stages are right and what lies between them is not: compare tensorrt_llm_bls/1/model.py with what forge lays, "
        "and look at `forge logs`; a stage that answers in another order than it was asked mixes streams"
    ),
    Stage.PIPELINE: (
        "one model holds all stages, so its text is all that can be seen: compare the dtype and quantization in 1/model.yaml "
        "(llmapi) or 1/model.json (vLLM) with the checkpoint's, and the tokenizer's files"
    ),
}
"""Stage -> what to look at when it is guilty."""


@dataclass(frozen=True)
class Report:
    """What came out. ``reference`` says who spoke for the checkpoint; ``notes`` what was left out and why."""

    model: str
    reference: str
    allowed: Tolerance
    verdicts: tuple[Verdict, ...]
    checks: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[Verdict, ...]:
        """Everything that differs by more than is allowed."""
        found = [each for each in (*self.verdicts, *self.checks) if each.outcome is Outcome.DIFFERS]
        forgiven = self._forgiven(found)
        return tuple(each for each in found if each.stage not in forgiven)

    @property
    def guilty(self) -> tuple[Stage, ...]:
        """The stages with faults, in the order in which a request passes them: the first is where to begin."""
        return tuple(stage for stage in Stage if any(each.stage is stage for each in self.faults))

    @property
    def passed(self) -> bool:
        return not self.guilty

    def _forgiven(self, found: Sequence[Verdict]) -> set[Stage]:
        """Stages in which a quantized model may say something else to a part of the prompts."""
        forgiven: set[Stage] = set()
        for stage in (Stage.ENGINE, Stage.PIPELINE):
            asked = [each for each in self.verdicts if each.stage is stage]
            bad = sum(each.stage is stage for each in found)
            if asked and bad <= self.allowed.diverging * len(asked):
                forgiven.add(stage)
        return forgiven
