"""Asks what is served: each stage by itself, then the pipeline; one prompt after another, each alone in its batch."""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from typing import Protocol, cast

from msgspec import Struct
from msgspec.structs import replace

from forge.client.answer import Answer, Finish, Hearing
from forge.client.lora import LoraTask
from forge.client.turns import counting
from forge.client.types import Chunk, Client, Request
from forge.client.vllm import SAMPLING
from forge.errors import InferenceError
from forge.schema.manifest import PublishedModel
from forge.schema.values import Role, RuntimeKind
from forge.verify.judge import ENSEMBLE, STREAM, UNARY, Heard
from forge.verify.transcripts import Reference, Transcript


class Stages(Protocol):
    """Asks the models around the engine directly. InferenceError for what they refuse."""

    def ids(self, address: str, model: str, text: str, stop: tuple[str, ...] = ()) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that preprocessing makes of ``text``, and those of the stop words, all words on end."""
        ...

    def ends(self, address: str, model: str, further: tuple[str, ...] = ()) -> tuple[int, ...]:
        """The end id that preprocessing sends, and its stop words of one token where it is asked for ``further`` alone."""
        ...

    def text(self, address: str, model: str, tokens: tuple[int, ...]) -> str:
        """The text that postprocessing makes of ``tokens``."""
        ...


class Interview(Struct, frozen=True):
    """One served model at ``address`` and what it is asked through."""

    address: str
    model: PublishedModel
    client: Client
    stages: Stages
    streams: bool = True
    """Whether the front model can stream."""
    room: int = 0
    """Tokens of the longest prompt and answer together; 0 where that is not known."""
    further: tuple[str, ...] = ()
    """End tokens that forge sends with each request, by their text (Request.ends)."""
    places: int = 8
    """Answers that the engine computes side by side."""
    lora: str = ""
    lora_task: LoraTask | None = None
    """The adapter that it is asked with, as Request has it."""

    @property
    def front(self) -> str:
        return self.model.front

    @property
    def whole(self) -> bool:
        """Whether one model holds all stages."""
        return self.model.runtime is RuntimeKind.LLMAPI or Role.PREPROCESSING not in self.model.roles

    @property
    def told(self) -> bool:
        """Whether that model tells its tokens."""
        return self.model.runtime is RuntimeKind.VLLM

    def hear(self, reference: Reference, tell: Callable[[str], None]) -> tuple[Heard, ...]:
        """What every stage says to every prompt."""
        found: list[Heard] = []
        for number, said in enumerate(reference.transcripts, 1):
            tell(f"prompt {number} of {len(reference.transcripts)}: {said.name}")
            found.append(self._hear(said, reference))
        ended = OneModel(self).ends(reference, found) if self.told else self._ends()
        return tuple(replace(each, ends=ended) for each in found)

    def _ends(self) -> tuple[int, ...] | None:
        """None where one model holds all stages, or preprocessing tells no end id."""
        if self.whole:
            return None
        with suppress(InferenceError):
            return self.stages.ends(self.address, self.model.roles[Role.PREPROCESSING], self.further)
        return None

    def chunks(self, request: Request) -> Iterator[Chunk]:
        """The pieces of one answer, of its first sequence."""
        return (chunk for chunk in self.client.generate(self.address, request) if chunk.index == 0)

    def say(self, request: Request) -> str:
        """One answer, whole."""
        return "".join(chunk.text for chunk in self.chunks(request))

    def greedy(self, prompt: str, most: int, model: str = "") -> Request:
        """The likeliest token each time, unlike the recipe's own sampling."""
        top = None if self.whole else 1
        heat = 0.0 if self.whole else None
        asked = Request(model or self.front, prompt, most, top_k=top, temperature=heat, stream=False, ends=self.further)
        return self.adapted(asked)

    def adapted(self, request: Request) -> Request:
        """The same with the adapter."""
        return replace(request, lora=self.lora, lora_task=self.lora_task)

    def begin(self, request: Request) -> None:
        """Ask, hear the first piece of the answer, and leave."""
        with closing(cast("Generator[Chunk]", self.client.generate(self.address, request))) as answer:
            next(iter(answer), None)

    def _hear(self, said: Transcript, reference: Reference) -> Heard:
        if self.told:
            return OneModel(self).hear(said, reference)
        texts = {UNARY: self.say(self.greedy(said.prompt, reference.max_tokens))}
        if self.streams:
            texts[STREAM] = self.say(streamed(self.greedy(said.prompt, reference.max_tokens)))
        if self.whole:
            return Heard(said.name, texts=texts)
        roles = self.model.roles
        if Role.ENSEMBLE in roles:
            texts[ENSEMBLE] = self.say(self.greedy(said.prompt, reference.max_tokens, roles[Role.ENSEMBLE]))
        ids, _ = self.stages.ids(self.address, roles[Role.PREPROCESSING], said.prompt)
        tokens, log_probs = self._engine(said.ids, reference)
        own = tokens if ids == said.ids else self._engine(ids, reference)[0]
        post = roles[Role.POSTPROCESSING]
        decoded = self.stages.text(self.address, post, said.tokens) if said.tokens else None
        cut = reference.until_end(own)
        own_decoded = decoded if cut == said.tokens else self.stages.text(self.address, post, cut) if cut else ""
        return Heard(said.name, ids, tokens, log_probs, own, decoded, own_decoded, texts)

    def _engine(self, ids: tuple[int, ...], reference: Reference) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Its tokens and their log-probabilities, without the prompt."""
        end = reference.ends[0] if reference.ends else None
        request = Request(
            self.model.roles[Role.TENSORRT_LLM],
            "",
            reference.max_tokens,
            top_k=1,
            stream=False,
            tokens=ids,
            end_id=end,
            pad_id=reference.pad if reference.pad is not None else end,
            return_log_probs=True,
        )
        request = self.adapted(request)
        try:
            heard = list(self.chunks(request))
        except InferenceError:  # speculative decoding tells none in some versions; what else is wrong comes again
            heard = list(self.chunks(replace(request, return_log_probs=False)))
        tokens = tuple(token for chunk in heard for token in chunk.tokens)
        if not heard:
            raise InferenceError("the engine answered nothing at all", where=request.model)
        if tokens[: len(ids)] == ids and len(tokens) > reference.max_tokens:  # a version that cannot leave the prompt out
            tokens = tokens[len(ids) :]
        return tokens, tuple(value for chunk in heard for value in chunk.log_probs)


class OneModel(Struct, frozen=True):
    """Asks a model that holds all stages and tells its tokens where log-probabilities are asked for: vLLM's."""

    interview: Interview

    def hear(self, said: Transcript, reference: Reference) -> Heard:
        """Its text, whole and streamed, each with its own tokens."""
        asked = self.interview.greedy(said.prompt, reference.max_tokens)
        whole = self._answer(asked)
        stream = self._answer(streamed(asked)) if self.interview.streams else None
        first = whole.replies[0]
        return Heard(
            said.name,
            tokens=_tokens(whole),
            log_probs=first.log_probs,
            texts={UNARY: first.text} if stream is None else {UNARY: first.text, STREAM: stream.text},
            prompt_tokens=whole.input_tokens,
            stream_tokens=None if stream is None else _tokens(stream),
        )

    def ends(self, reference: Reference, heard: Sequence[Heard]) -> tuple[int, ...] | None:
        """Which of the checkpoint's end tokens end an answer, and others that did early; None where that cannot be seen."""
        said = {each.name: each.tokens for each in reference.transcripts}
        early = (
            each.tokens[-1]
            for each in heard
            if each.tokens and each.tokens[-1] not in reference.ends and _precedes(each.tokens, said[each.prompt])
        )
        prompt = reference.transcripts[0].prompt
        own = {token: self._is_end(prompt, token) for token in reference.ends}
        if any(ended is None for ended in own.values()):
            return None
        more = [token for token in dict.fromkeys(early) if self._is_end(prompt, token)]
        return (*(token for token, ended in own.items() if ended), *more)

    def _is_end(self, prompt: str, token: int) -> bool | None:
        """Whether an answer ends with ``token``: it is all that may be said. None where the model does not do as it is told."""
        asked = self.interview.greedy(prompt, 2)
        only = json.dumps({"allowed_token_ids": [token]})
        try:
            reply = self._asked(replace(asked, inputs={SAMPLING: only}, return_log_probs=True)).replies[0]
        except InferenceError:
            return None
        if reply.finish is Finish.STOP and reply.tokens in ((token,), ()):
            return True
        return False if reply.tokens == (token, token) else None

    def _answer(self, request: Request) -> Answer:
        try:
            return self._asked(replace(request, return_log_probs=True))
        except InferenceError:  # some ways of speculation tell none; what else is wrong comes again
            return self._asked(request)

    def _asked(self, request: Request) -> Answer:
        hearing = Hearing(request)
        for chunk in self.interview.chunks(counting(request)):
            hearing.hear(chunk)
        return hearing.answer()


def _tokens(answer: Answer) -> tuple[int, ...] | None:
    """None where it told none of a text."""
    reply = answer.replies[0]
    return reply.tokens if reply.tokens or not reply.text else None


def _precedes(tokens: tuple[int, ...], longer: tuple[int, ...]) -> bool:
    return len(tokens) < len(longer) and longer[: len(tokens)] == tokens


def streamed(request: Request) -> Request:
    """The same, piece by piece."""
    return replace(request, stream=True)
