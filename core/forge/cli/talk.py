"""A talk on a terminal or through a pipe: each question asked, each answer shown, whatever is changed on the way."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial

from msgspec import Struct, field
from msgspec.structs import replace

from forge.api.forge import Forge
from forge.cli.lines import Typist, piped
from forge.cli.output import Output
from forge.cli.shown_answer import asked, document, doubt, judge, tell
from forge.client.chat_template import Turn, asked as with_images
from forge.client.conversation import Conversation
from forge.client.sampling import samples
from forge.client.types import Chunk, Request
from forge.errors import InferenceError
from forge.serve.lookup import Target

GREEDY = "the likeliest token is taken each time, so the answer stays the same; /temperature 0.7 draws"


class Talk(Struct):
    """``templated`` is false for a model that only continues texts: each question is then a text of its own."""

    output: Output
    shop: Forge
    target: Target
    sampling: Mapping[str, object]
    conversation: Conversation = field(default_factory=Conversation)
    templated: bool = True
    images: tuple[bytes, ...] = ()
    """Files that the model is shown before the first question, whatever that is."""
    _judgements: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    _doubted: str = ""
    _heard: list[str] = field(default_factory=list[str])

    @property
    def typed(self) -> bool:
        """Whether a person types, and not a pipe."""
        return sys.stdin.isatty() and not self.output.as_json

    def run(self) -> None:
        """Go on until there are no more questions; ends as ``judge`` says where an answer was to be judged."""
        if not self.typed:
            for question in piped():
                self.ask(question)
        else:
            self._greet()
            with closing(Typist(self.shop.home / "chat_history")) as typist:
                self._listen(typist)
        self.judge()

    def judge(self) -> None:
        """End as ``forge.cli.shown_answer.judge`` does where an answer was to be judged."""
        for each in self._judgements:
            each()

    def _greet(self) -> None:
        model = self.target.model
        self.output.say(f"{model.name} ({model.runtime}). /help shows what can be typed, Ctrl-D ends.")

    def _listen(self, typist: Typist) -> None:
        while True:
            try:
                while not self.conversation.ended and (text := typist.text()) is not None:
                    self._take(text)
            except KeyboardInterrupt as error:  # between the prompt and the answer
                if type(error) is not KeyboardInterrupt:  # SIGTERM
                    raise
                self.output.warn("\n(stopped)")
            else:
                return

    def _take(self, text: str) -> None:
        """A command or a question."""
        question = text.removeprefix("/") if text.startswith("//") else text
        if text.startswith("/") and not text.startswith("//"):
            if said := self.conversation.command(text):
                self.output.warn(said)
            question, self.conversation.again = self.conversation.again, ""
        if question and not self.conversation.ended:
            self._answer(question, again=text != question and not text.startswith("//"))

    def _answer(self, question: str, *, again: bool) -> None:
        """Ask; what goes wrong, and Ctrl-C, end this answer and not the talk."""
        try:
            self.ask(question, again=again)
        except InferenceError as error:
            self.conversation.retract()
            self.output.fail(error)
        except KeyboardInterrupt as error:
            if type(error) is not KeyboardInterrupt:  # SIGTERM
                raise
            self.output.warn("\n(stopped)")
            turns = self.conversation.turns
            if not turns or turns[-1][0] != "user":  # it was not asked yet, or is answered
                return
            if self._heard:
                turns.append(("assistant", "".join(self._heard)))
            else:
                self.conversation.retract()

    def ask(self, question: str, *, again: bool = False) -> None:
        """Ask one question, and show the answer."""
        talk = self.conversation
        self._heard.clear()
        talk.turns.append(("user", question))
        prompt = self.shop.templated(self.target, self._turns()) if self.templated else question
        options = {**self.sampling, **talk.settings}
        request, display = asked(replace(self.target.request(prompt), images=self.images), options)
        self._doubt(request, options, again=again)
        # A conversation goes on from one answer: of a beam search from the best.
        display = replace(display, whole=display.several, several=False, chunks=False)
        chunks = self._first(self.shop.generate(self.target.address, request))
        answer = tell(self.output, request, chunks, display, partial(self.shop.spans, self.target))
        talk.turns.append(("assistant", answer.text))
        if self.output.as_json:
            line = {"question": question, "answer": answer.text, "seed": request.seed}
            self.output.line({**line, **document(answer, display)})
        if display.threshold is not None and answer.below(display.threshold) is not False:
            self._judgements.append(partial(judge, self.output, answer, display))

    def _turns(self) -> list[Turn]:
        """The talk, with the images before its first question."""
        turns = list[Turn](self.conversation.messages)
        first = next(place for place, (role, _) in enumerate(self.conversation.messages) if role == "user")
        turns[first] = "user", with_images(self.conversation.messages[first][1], len(self.images))
        return turns

    def _doubt(self, request: Request, options: dict[str, object], *, again: bool) -> None:
        """Say what changes nothing, each thing once."""
        said = doubt(request, options) or (GREEDY if again and not samples(request) else "")
        if said and said != self._doubted:
            self.output.say(said)
            self._doubted = said

    def _first(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The first sequence's, remembered as far as it came."""
        for chunk in chunks:
            if chunk.index == 0:
                if chunk.whole:
                    self._heard.clear()
                self._heard.append(chunk.text)
                yield chunk
