"""Reads a request's tensors into what is asked of the decoder; a RequestFault says what cannot be answered."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .arrays import Array, Floats, Ints
from .faults import RequestFault
from .sampling import Sampling, Words

# Inputs of the tensor interface that mean another way of decoding than the twin's.
_FOREIGN = (
    "draft_input_ids",
    "encoder_input_features",
    "guided_decoding_guide",
    "lora_task_id",
    "lora_weights",
    "prompt_embedding_table",
)
_SEED_BITS = 64
MAX_ANSWERS = 128
"""Answers to one request where the model's folder states no limit."""
MAX_TOPS = 20
"""Tokens of which the log-probability is told at one place: as many as OpenAI's API and vLLM tell."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask: sizes in tokens. ``exclude_input`` is the model's default for answers that do not stream."""

    vocabulary: int
    max_input_len: int
    max_seq_len: int
    max_beam_width: int = 1
    max_answers: int = MAX_ANSWERS
    decoupled: bool = True
    exclude_input: bool = False
    declared: frozenset[str] = frozenset()
    """Names of the outputs that the model's config declares."""
    begins: int | None = None
    """The token that answers begin with where an encoder reads the prompt; they alone take ``max_seq_len`` then."""


@dataclass(frozen=True, slots=True)
class Beams:
    """A beam search: how many beams, how length weighs (score / length ** penalty), whether to end when enough are done."""

    width: int = 1
    length_penalty: float = 0.0
    early_stopping: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt of one request and what to do with it."""

    prompt: Ints = field(compare=False)
    max_tokens: int
    begins: int | None = None
    """The token that the answer goes on from where an encoder reads the prompt; None: it goes on from the prompt."""
    end_id: int = -1
    pad_id: int = 0
    stop_words: Words = ()
    sampling: Sampling = field(default_factory=Sampling)
    beams: Beams = Beams()
    samples: int = 1
    """How many answers to give; of a beam search, its best ones."""
    streaming: bool = False
    exclude_input: bool = False
    log_probs: bool = False
    tops: int = 0
    """How many of the likeliest tokens to tell at each place."""
    context_logits: bool = False
    generation_logits: bool = False

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end the answer. TensorRT-LLM knows one end id: a checkpoint's others come as stop words."""
        own = () if self.end_id < 0 else (self.end_id,)
        return (*own, *(word[0] for word in self.stop_words if len(word) == 1))

    @property
    def before(self) -> Ints:
        """What the answer goes on from: its own text counts from here."""
        return self.prompt if self.begins is None else np.array([self.begins])


def is_stop(tensors: Mapping[str, Array]) -> bool:
    """Whether a request only says that the one with its id shall end."""
    return "stop" in tensors and bool(tensors["stop"].any())


def read_asks(tensors: Mapping[str, Array], limits: Limits) -> tuple[Ask, ...]:
    """One Ask for each prompt of the batch [batch, length]."""
    for name in _FOREIGN:
        if name in tensors and tensors[name].size:
            raise RequestFault(f"{name}: the twin runtime does not support it; leave the tensor out")
    ids = tensors.get("input_ids")
    if ids is None or ids.ndim != 2:
        raise RequestFault("input_ids of shape [batch, length] is needed")
    asks = tuple(_Row(tensors, row, limits).ask() for row in range(len(ids)))
    if (answers := sum(each.samples for each in asks)) > limits.max_answers:
        most = f"at most {limits.max_answers} are given (limits.max_answers)"
        raise RequestFault(f"prompts x num_return_sequences is {answers}; {most}")
    return asks


class _Row:
    """One row of a request's tensors."""

    def __init__(self, tensors: Mapping[str, Array], row: int, limits: Limits) -> None:
        self._tensors, self._row, self._limits = tensors, row, limits

    def ask(self) -> Ask:
        limits, beams = self._limits, self._beams()
        streaming = self.switch("streaming")
        if streaming and not limits.decoupled:
            raise RequestFault("streaming needs a decoupled model: set model_transaction_policy { decoupled: true }")
        prompt = self._prompt()
        self._refuse_beginning()
        end_id = self.whole("end_id", -1)
        samples = self.whole("num_return_sequences", beams.width, least=1)
        if beams.width > 1 and samples > beams.width:
            raise RequestFault(f"num_return_sequences is {samples}, more than beam_width {beams.width}")
        ask = Ask(
            prompt=prompt,
            max_tokens=self._max_tokens(len(prompt)),
            begins=limits.begins,
            end_id=end_id,
            pad_id=self.whole("pad_id", max(end_id, 0)),
            stop_words=self._words("stop_words_list"),
            sampling=self._sampling(),
            beams=beams,
            samples=samples,
            streaming=streaming,
            exclude_input=self.switch("exclude_input_in_output", default=limits.exclude_input),
            log_probs=self.switch("return_log_probs"),
            tops=self._tops(),
            context_logits=self._logits("context_logits", beams),
            generation_logits=self._logits("generation_logits", beams),
        )
        if ask.end_id >= limits.vocabulary:
            raise RequestFault(f"end_id is {ask.end_id}; the vocabulary has {limits.vocabulary} tokens")
        return ask

    def _tops(self) -> int:
        count = self.whole("num_top_log_probs", 0, least=0)
        if count > MAX_TOPS:
            raise RequestFault(f"num_top_log_probs is {count}; at most {MAX_TOPS} are told")
        return count

    def _refuse_beginning(self) -> None:
        """An answer begins with the model's own token.

        Where there is no encoder the tensor counts for nothing: NVIDIA's preprocessing sends it to every model, and their
        backend reads it for an encoder-decoder alone.
        """
        given, begins = self._tensors.get("decoder_input_ids"), self._limits.begins
        if begins is None or given is None or not given.size or given[self._row].reshape(-1).tolist() == [begins]:
            return
        what = f"decoder_input_ids: an answer begins with the model's own token {begins}; leave the tensor out"
        raise RequestFault(what)

    def _logits(self, name: str, beams: Beams) -> bool:
        wanted = self.switch(f"return_{name}")
        if wanted and name not in self._limits.declared:
            raise RequestFault(f"return_{name}: the model's config.pbtxt declares no output {name}")
        if wanted and beams.width > 1:
            raise RequestFault(f"return_{name}: the twin runtime gives logits only with beam_width 1")
        return wanted

    def _prompt(self) -> Ints:
        ids: Ints = self._tensors["input_ids"][self._row].astype(np.int64)
        length = self.whole("input_lengths", len(ids))
        if not 0 < length <= len(ids):
            raise RequestFault(f"input_lengths is {length}; input_ids holds {len(ids)} tokens, at least 1 is needed")
        limits = self._limits
        prompt: Ints = ids[:length]
        if int(prompt.min()) < 0 or int(prompt.max()) >= limits.vocabulary:
            wrong = next(int(token) for token in prompt if not 0 <= token < limits.vocabulary)
            raise RequestFault(f"input_ids holds token {wrong}; the vocabulary has {limits.vocabulary} tokens")
        if length > limits.max_input_len:
            raise RequestFault(f"prompt length ({length}) exceeds the model's max_input_len ({limits.max_input_len})")
        return prompt

    def _max_tokens(self, length: int) -> int:
        if "request_output_len" not in self._tensors:
            raise RequestFault("request_output_len is needed")
        wanted, most = self.whole("request_output_len", 0, least=1), self._limits.max_seq_len
        if self._limits.begins is not None and 1 + wanted > most:
            raise RequestFault(
                f"the token that begins an answer (1) + request_output_len ({wanted}) exceeds the model's max_seq_len ({most})"
            )
        if self._limits.begins is None and length + wanted > most:
            raise RequestFault(
                f"prompt length ({length}) + request_output_len ({wanted}) exceeds the model's max_seq_len ({most})"
            )
        return wanted

    def _beams(self) -> Beams:
        width, most = self.whole("beam_width", 1, least=1), self._limits.max_beam_width
        if width > most:
            raise RequestFault(f"beam_width is {width}; the model was built for max_beam_width {most}")
        if width > 1 and self.real("beam_search_diversity_rate", 0.0):
            raise RequestFault("beam_search_diversity_rate: the twin runtime does not support it")
        return Beams(width, self.real("len_penalty", 0.0), self.switch("early_stopping", default=True))

    def _sampling(self) -> Sampling:
        seed = self.whole("seed", self.whole("random_seed", 0))
        return Sampling(
            top_k=self.whole("runtime_top_k", 0, least=0),
            top_p=self.real("runtime_top_p", 0.0, least=0.0, most=1.0),
            min_p=self.real("min_p", 0.0, least=0.0, most=1.0),
            temperature=self.real("temperature", 1.0, least=0.0),
            seed=seed % (1 << _SEED_BITS),  # random_seed was signed once
            repetition_penalty=self._positive("repetition_penalty"),
            presence_penalty=self.real("presence_penalty", 0.0),
            frequency_penalty=self.real("frequency_penalty", 0.0),
            min_tokens=self.whole("min_tokens", self.whole("min_length", 0, least=0), least=0),
            bad_words=self._words("bad_words_list"),
            bias=self._bias(),
            top_p_min=self.real("runtime_top_p_min", 0.0, least=0.0, most=1.0),
            top_p_decay=self.real("runtime_top_p_decay", 1.0, least=0.0, most=1.0),
            top_p_reset=self.whole("runtime_top_p_reset_ids", -1),
        )

    def _positive(self, name: str) -> float:
        value = self.real(name, 1.0)
        if value <= 0.0:
            raise RequestFault(f"{name} is {value}; it must be above 0")
        return value

    def _bias(self) -> Floats | None:
        given = self._tensors.get("embedding_bias")
        if given is None or not given.size:
            return None
        bias = given[self._row].astype(np.float32)
        if bias.shape != (self._limits.vocabulary,):
            raise RequestFault(f"embedding_bias has shape {list(bias.shape)}; [{self._limits.vocabulary}] is needed")
        if np.isnan(bias).any():
            raise RequestFault("embedding_bias holds NaN")
        return bias if bias.any() else None

    def _words(self, name: str) -> Words:
        """Words from [2, length]: all tokens on end, and where each word ends; -1 fills the rest."""
        given = self._tensors.get(name)
        if given is None or not given.size:
            return ()
        if given.ndim != 3 or given.shape[1] != 2:
            raise RequestFault(f"{name} has shape {list(given.shape)}; [batch, 2, length] is needed")
        flat, ends = given[self._row].astype(np.int64).tolist()
        words: list[tuple[int, ...]] = []
        start = 0
        for end in (end for end in ends if end >= 0):
            if end < start or end > len(flat):
                raise RequestFault(f"{name}: the end offsets {ends} are not ascending within {len(flat)} tokens")
            words.append(tuple(flat[start:end]))
            start = end
        if any(not 0 <= token < self._limits.vocabulary for word in words for token in word):
            raise RequestFault(f"{name} holds a token outside the vocabulary of {self._limits.vocabulary}")
        return tuple(word for word in words if word)

    def _first(self, name: str) -> object:
        given = self._tensors.get(name)
        if given is None or not given.size:
            return None
        flat = given.reshape(-1)
        return flat[min(self._row, len(flat) - 1)].item()

    def whole(self, name: str, default: int, least: int | None = None) -> int:
        value = self._first(name)
        number = default if value is None else int(value) if isinstance(value, int | float) else None
        if number is None:
            raise RequestFault(f"{name} holds no number")
        if least is not None and number < least:
            raise RequestFault(f"{name} is {number}; it must be at least {least}")
        return number

    def real(self, name: str, default: float, least: float = -math.inf, most: float = math.inf) -> float:
        value = self._first(name)
        number = default if value is None else float(value) if isinstance(value, int | float) else math.nan
        if not math.isfinite(number) or not least <= number <= most:
            allowed = "a finite number" if math.isinf(least) else f"a number from {least:g} on"
            allowed = allowed if math.isinf(most) else f"a number from {least:g} to {most:g}"
            raise RequestFault(f"{name} is {number}; it must be {allowed}")
        return number

    def switch(self, name: str, *, default: bool = False) -> bool:
        value = self._first(name)
        return default if value is None else bool(value)
