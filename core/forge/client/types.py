"""Requests to a served model, and what comes back."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from msgspec import Struct, field
from msgspec.structs import astuple, replace

from forge.client.guide import Guide
from forge.client.lora import LoraTask
from forge.schema.values import LimitsTable, Scalar


class Request(Struct, frozen=True):
    """One generation to ask for; ``None`` leaves a value to the server. Lengths in tokens, ``seed`` below 2**64.

    Names and types that go over the wire are the model's own, read from its metadata: ``seed`` is ``random_seed`` where the
    model is of TensorRT-LLM 0.19, ``sampling_param_seed`` where it is llmapi's. What a model has no input for is refused.
    """

    model: str
    prompt: str
    max_tokens: int
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    """Tokens less likely than this part of the likeliest one's probability are not drawn (the twin, vLLM)."""
    seed: int | None = None
    beam_width: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    """Texts: the answer ends before the first of them, whatever its tokens are. The model is told them too, to end there."""
    bad: tuple[str, ...] = ()
    """Texts that the model is told not to say, each with and without a blank before it. It knows them as tokens."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """What is added to the logits of tokens, by their ids (vLLM, and models with forge's own skeletons: the twin, engines)."""
    ends: tuple[str, ...] = ()
    """Special tokens, by their text, that end an answer beside the one that the server knows: stop words that nobody chose."""
    stream: bool = True
    tokens: tuple[int, ...] = ()
    """The prompt as token ids, for a model that takes no text (``tensorrt_llm``); ``prompt`` is then left empty."""
    images: tuple[bytes, ...] = ()
    """Files of images (PNG, JPEG, ...), in the order in which the prompt speaks of them; its own text marks their places."""
    guide: Guide | None = None
    """What the answer is held to: JSON, a schema, a regular expression (vLLM; engines of TensorRT-LLM 0.19 and later)."""
    n: int | None = None
    """How many sequences to give (``num_return_sequences``): so many samples; of a beam search, its so many best beams."""
    length_penalty: float | None = None
    early_stopping: bool | None = None
    beam_search_diversity_rate: float | None = None
    top_p_min: float | None = None
    top_p_decay: float | None = None
    top_p_reset_ids: int | None = None
    num_draft_tokens: int | None = None
    lora: str = ""
    """The adapter that the model is asked with, by its name in the recipe."""
    lora_task: LoraTask | None = None
    """The same for an engine, which knows adapters by numbers; where it does not hold this one, it is sent with the request."""
    end_id: int | None = None
    pad_id: int | None = None
    return_log_probs: bool = False
    top_log_probs: int | None = None
    """So many of the likeliest tokens at each place too, with their log-probabilities (the twin, vLLM; 20 at most)."""
    return_perf_metrics: bool = False
    return_token_counts: bool = False
    """What speculative decoding accepted, how many tokens there are; a model without such an input is asked all the same."""
    first_seconds: float = LimitsTable().max_first_seconds
    silent_seconds: float = LimitsTable().max_silent_seconds
    """How long the client waits: for the first response (or a whole answer that does not stream), and between two; 0: ever."""
    inputs: Mapping[str, Scalar | tuple[Scalar, ...]] = field(default_factory=dict[str, "Scalar | tuple[Scalar, ...]"])
    """Any other input by its name in the model's metadata. Texts are read as the metadata's type: "0.5" for an FP32."""


class Acceptance(Struct, frozen=True):
    """What speculative decoding made of its drafts in one answer: tokens proposed, tokens kept, kept / proposed."""

    rate: float
    accepted: int = 0
    drafted: int = 0


class Alternative(Struct, frozen=True):
    """A token that could have been picked at one place, and the natural logarithm of its probability there."""

    text: str
    log_prob: float
    token: int


class Chunk(Struct, frozen=True, eq=False):
    """A piece of an answer: a token, or several, as the model cuts it; ``text`` is new in a stream, the whole otherwise."""

    text: str
    final: bool = False
    index: int = 0
    """Which sequence, where several are asked for (samples or beams)."""
    tokens: tuple[int, ...] = ()
    """New token ids, from a model that gives them: ``tensorrt_llm``, and vLLM's where log-probabilities are asked for (NVIDIA's
    bls, ensemble and llmapi give text only)."""
    log_probs: tuple[float, ...] = ()
    """Natural logarithm of each new token's probability, where asked for; of tokens too whose text is held back as yet."""
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    """For each new token the likeliest in its place, likeliest first, where asked for; it can be among them."""
    spelled: tuple[str, ...] = ()
    """The text of each new token, from a model that tells alternatives; of those that one character spans the last has it."""
    cum_log_prob: float | None = None
    """The sequence's log-probability so far, where log-probabilities were asked for."""
    acceptance: Acceptance | None = None
    """What speculation accepted, where it was asked for and the model reports it."""
    input_tokens: int | None = None
    """Tokens of the prompt, where they were asked for and the model counts them (TensorRT-LLM 1.1 and later; the twin)."""
    output_tokens: int | None = None
    """New tokens, likewise; where one response brings several sequences, of all of them, in the first one's chunk."""
    whole: bool = False
    """The chunk states the sequence anew, in place of all before: beams of a stream, which may overtake each other."""
    seconds: float = 0.0
    """From sending the request to the arrival of this chunk, by the client's clock."""
    stopped: bool = False
    """The sequence ends here before one of the request's stop texts; nothing more comes of it."""
    finish: str = ""
    """Why the sequence ended, from a model that says it (llmapi's: ``stop``, ``length``, ``timeout``, ``cancelled``)."""

    def __eq__(self, other: object) -> bool:
        """By all but the clock: the same answer, heard twice, is the same."""
        return isinstance(other, Chunk) and astuple(replace(self, seconds=other.seconds)) == astuple(other)

    def __hash__(self) -> int:
        return hash((self.text, self.index, self.final))


class TensorMetadata(Struct, frozen=True):
    """An input or output as the server describes it; -1 in ``shape`` is any length, the batch first where there is one."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(Struct, frozen=True):
    """What a served model takes and gives. ``decoupled``: it may answer more than once, so it can stream."""

    model: str
    inputs: Mapping[str, TensorMetadata]
    outputs: Mapping[str, TensorMetadata]
    decoupled: bool = True
    accumulates: bool = False
    """Each answer of a stream holds the whole text so far (bls with ``accumulate_tokens``, and every llmapi model)."""
    vllm: str = ""
    """The version of the vLLM in Triton's image that serves it, where forge wrote it into config.pbtxt."""


class Client(Protocol):
    """Speaks KServe v2 to a served repository."""

    def generate(self, address: str, request: Request) -> Iterator[Chunk]:
        """Stream the answer; closing the iterator cancels the request. InferenceError for what the server refuses."""
        ...
