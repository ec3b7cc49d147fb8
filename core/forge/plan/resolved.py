"""One recipe with all that planning may know of it."""

from msgspec import Struct, field

from forge.files.safetensors import Tensor
from forge.plan.families import Family
from forge.plan.lock import Pins
from forge.schema.adapters import Adapter
from forge.schema.manifest import RecipeFile
from forge.schema.values import Facts, Recipe
from forge.schema.vllm_known import VllmKnown
from forge.trtllm.toolchain import Tooling


class Resolved(Struct, frozen=True):
    """A recipe, the plugins that answer for it, and the facts they are asked with."""

    recipe: Recipe
    family: Family
    facts: Facts
    tooling: Tooling | None = None
    """What the recipe's image says of itself, where it has been read."""
    unclaimed: bool = False
    """Whether no installed family serves its architecture: it goes by the runtimes that convert nothing."""
    vllm: VllmKnown | None = None
    """What the vLLM of its image or environment takes and serves, where that has been read."""
    dockerfile: str = ""
    """The template of the family's image."""
    gpus: str = ""
    """Which GPUs its containers may use."""
    pins: Pins = field(default_factory=Pins)
    """What a lock says of the environments that serve it here."""
    locked: bool = False
    """Whether a lock has pinned what it stands on."""
    questions: str = ""
    """The prompts of a verification that the build has to pass, as JSONL; empty where it has to pass none."""
    adapters: tuple[Adapter, ...] = ()
    """The recipe's LoRA adapters, in its order."""
    tensors: tuple[Tensor, ...] = ()
    """Those of its checkpoint, where there are adapters to be held against them and its source says them."""
    file: RecipeFile | None = None
    """Where the recipe stands, and its digest; for a person, and for no step."""
    named: str = ""
    """The recipe's file as it was named; empty where it has none."""
    golden: str = ""
    """The transcripts that stand beside the recipe, for such a verification; empty where there are none."""
