"""Runs a benchmark: finds out what is measured, puts each point under load, looks at the server meanwhile, writes it down."""

import collections
import importlib.metadata
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from blake3 import blake3
from msgspec import Struct, field
from msgspec.structs import replace

from forge.bench import figures, prompts, quality as scoring, results, workload
from forge.bench.aiperf.environment import aiperf_driver
from forge.bench.driver import Ask, Drive, Driver, Load
from forge.bench.options import REQUESTS, BenchOptions, Setting, settings
from forge.bench.outside import Outside
from forge.bench.promptfoo import Provider, configuration
from forge.bench.prompts import Entry
from forge.bench.quality import Exam
from forge.bench.readings import Instruments, Seen
from forge.bench.results import Counted, Machine, Point, Quality, Repeat, Results, Settings, Subject
from forge.bench.workload import Counter, Offer, Workload
from forge.build.builder import Builder
from forge.client.sampling import over, seeded
from forge.client.tensors import stated
from forge.errors import BenchError, InferenceError
from forge.events import Event, Listener
from forge.files import texts
from forge.machine.probe import processor
from forge.schema.values import Ports
from forge.serve.lookup import Target
from forge.store.artifact import IMAGE, noted
from forge.store.store import Store

_EXAM_CALLERS = 4


class Clocks(Struct, frozen=True):
    """``steady`` never goes back, in seconds; ``now`` is the time of day, in seconds since 1970."""

    steady: Callable[[], float]
    now: Callable[[], float]


class _Course(Struct):
    """One model under one setting, repeat by repeat."""

    target: Target
    workload: Workload
    setting: Setting
    repeats: list[Repeat] = field(default_factory=list[Repeat])
    gaps: list[float] = field(default_factory=list[float])
    quality: Quality | None = None

    @property
    def label(self) -> str:
        return f"{self.target.model.name}, {self.setting.label}"

    def point(self) -> Point:
        return Point(
            model=self.target.model.name,
            values=dict(self.setting.values),
            concurrency=self.setting.load.concurrency,
            rate=self.setting.load.rate,
            sampling=self.workload.sampling(self.setting),
            figures=figures.figures(self.repeats),
            distributions=figures.distributions(self.repeats, self.gaps),
            repeats=tuple(self.repeats),
            quality=self.quality,
        )


class Bench:
    """One benchmark of models of one server. ``builder`` makes what another driver needs; quality is always asked by forge."""

    def __init__(self, outside: Outside, store: Store, clocks: Clocks, tell: Listener, builder: Callable[[], Builder]) -> None:
        self._outside = outside
        self._store = store
        self._clocks = clocks
        self._tell = tell
        self._own = outside.load_loop(clocks.steady)
        self._driver = self._own
        self._builder = builder
        self._digests: dict[str, None] = {}
        self._notes: dict[str, None] = {}

    def run(self, targets: Sequence[Target], ports: Ports, options: BenchOptions) -> Results:
        """Measure ``targets``, which one server at ``ports`` offers. BenchError for what cannot be granted, before any load;
        InferenceError where not one request of a repeat came through. Other failures are counted in the results."""
        exams = scoring.read(_text(options.quality), str(options.quality)) if options.quality else ()
        courses = self._courses(targets, options)
        self._driver = self._hired(options)  # what cannot be granted is refused before anything is made for it
        began, made = self._clocks.steady(), self._clocks.now()
        instruments = self._outside.instruments(ports)
        counters = {each.model.name: Counter(self._outside.tokens(each.tokenizer), options.goodput) for each in targets}
        # Repeats are the outer loop, so that what else the machine does falls on all points alike.
        for number in range(options.repeats):
            for course in courses:
                self._repeat(course, number, (ports, instruments), counters[course.target.model.name], began)
        for course in courses if exams else ():
            self._say(f"{course.label}: quality, {len(exams)} prompts")
            course.quality = self._examine(course, exams, ports)
        self._remark(courses, counters)
        return Results(
            format=results.FORMAT,
            made=datetime.fromtimestamp(made, UTC).isoformat(timespec="seconds"),
            wall=round(self._clocks.steady() - began, 3),
            command=options.command,
            driver=self._driver.name,
            forge=importlib.metadata.version("triton-forge"),
            triton=instruments.version(),
            subjects=tuple(self._subject(target) for target in targets),
            machine=self._machine(),
            settings=self._settings(options, courses, counters),
            points=tuple(course.point() for course in courses),
            notes=tuple(self._notes),
        )

    def export(self, targets: Sequence[Target], ports: Ports, options: BenchOptions) -> str:
        """The quality file of ``options`` as a promptfoo configuration: one provider for each model and setting."""
        if options.quality is None:
            raise BenchError("there are no prompts to export", hint="name them: --quality FILE")
        exams = scoring.read(_text(options.quality), str(options.quality))
        courses = self._courses(targets, options)
        if len(targets) > 1 and any(exam.chat or exam.messages for exam in exams):
            raise BenchError("each model has a chat template of its own", hint="export one model at a time")
        providers = [self._provider(course, ports) for course in courses]
        return configuration([(exam, _prompt(exam, courses[0].workload.offer)) for exam in exams], providers)

    def _hired(self, options: BenchOptions) -> Driver:
        if options.driver == "forge":
            return self._own
        return aiperf_driver(self._outside, self._store, self._builder, self._tell)

    def _say(self, text: str) -> None:
        self._tell(Event("note", "bench", text=text))

    # -- before the load

    def _courses(self, targets: Sequence[Target], options: BenchOptions) -> list[_Course]:
        wanted = settings(options)
        widest = max(setting.load.concurrency or 1 for setting in wanted)
        count = options.requests or max(REQUESTS, 2 * widest)
        entries: tuple[Entry, ...] = ()
        if options.dataset is not None:
            entries = prompts.dataset(_text(options.dataset), str(options.dataset))
        loads = {target.model.name: Workload(self._offer(target), options, entries, count) for target in targets}
        courses = [_Course(target, loads[target.model.name], setting) for setting in wanted for target in targets]
        for course in courses:  # what cannot be asked for is refused before anything is
            course.workload.sampling(course.setting)
        return courses

    def _offer(self, target: Target) -> Offer:
        def render(messages: Sequence[tuple[str, str]]) -> str:
            return self._outside.templated(target.tokenizer, messages, target.model.limits)

        tokens = self._outside.tokens(target.tokenizer)
        inputs = frozenset(self._outside.metadata(target.address, target.model.front).inputs)
        request = replace(target.request(""), first_seconds=0.0)  # --timeout bounds a request, and nobody calls that one late
        return Offer(request, inputs, tokens, render)

    # -- under load

    def _repeat(
        self,
        course: _Course,
        number: int,
        server: tuple[Ports, Instruments],
        counter: Counter,
        began: float,
    ) -> None:
        """One repeat of one point."""
        ports, instruments = server
        drive = self._drive(course, number, ports)
        looked: list[Seen] = []
        started: list[float] = []

        @contextmanager
        def watch() -> Generator[None]:
            with instruments.look() as seen:
                looked.append(seen)
                started.append(self._clocks.steady() - began)
                yield

        answers = self._driver.drive(drive, watch)
        seen = looked[0] if looked else Seen()
        self._notes.update(dict.fromkeys(seen.notes))
        records = tuple(counter.record(answer) for answer in answers)
        errors = dict(collections.Counter(record.error for record in records if record.error))
        if records and sum(errors.values()) == len(records):
            raise InferenceError(f"every request failed: {next(iter(errors))}", where=course.label)
        own = frozenset(course.target.model.roles.values())
        course.repeats.append(
            Repeat(
                seed=drive.seed,
                began=round(started[0] if started else 0.0, 3),
                wall=round(max((record.end for record in records), default=0.0), 6),
                records=records,
                errors=errors,
                triton={name: times for name, times in seen.triton.items() if name in own},
                gauges=dict(seen.gauges),
                gpus=seen.gpus,
            )
        )
        course.gaps += workload.gaps(answers)
        self._say(f"{course.label}: repeat {number + 1} of {course.workload.options.repeats}: {_short(course.repeats[-1])}")

    def _drive(self, course: _Course, number: int, ports: Ports) -> Drive:
        load, setting = course.workload, course.setting
        texts = load.prompts(setting, number)
        if number == 0:  # the others follow from the seed; points that ask the same count once
            self._digests[prompts.digest(texts)] = None
        warm = load.prompts(setting, number, warm=True)
        return Drive(
            address=course.target.address,
            http=ports.at(ports.http),
            load=setting.load,
            asks=load.asks(setting, number, texts),
            warm=load.asks(setting, number, warm),
            duration=load.options.duration,
            seed=load.options.seed + number,
            patience=load.options.patience,
            tokenizer=course.target.tokenizer,
        )

    def _examine(self, course: _Course, exams: Sequence[Exam], ports: Ports) -> Quality:
        """Ask every exam once at a point's sampling."""
        offer, options = course.workload.offer, course.workload.options
        plain = replace(seeded(over(offer.request, course.setting.sampling), options.seed), stream=options.stream)
        asks = [Ask(replace(plain, prompt=_prompt(exam, offer), max_tokens=exam.max_tokens)) for exam in exams]
        http = ports.at(ports.http)
        drive = Drive(course.target.address, http, Load(concurrency=_EXAM_CALLERS), asks, patience=options.patience)
        answers = self._own.drive(drive, nullcontext)
        answered = {id(answer.ask): answer for answer in answers}  # two exams may have one prompt
        verdicts: list[results.Verdict] = []
        for exam, ask in zip(exams, asks, strict=True):
            answer = answered[id(ask)]
            failed = results.Verdict(name=exam.name, passed=False, answer=answer.text, failed=(answer.error,))
            verdicts.append(failed if answer.error else exam.verdict(answer.text))
        return scoring.scored(verdicts)

    # -- afterwards

    def _remark(self, courses: Sequence[_Course], counters: Mapping[str, Counter]) -> None:
        repeats = [repeat for course in courses for repeat in course.repeats]
        failed = sum(sum(repeat.errors.values()) for repeat in repeats)
        remarks = [counter.doubt() for counter in counters.values()]
        if failed:
            remarks.append(f"{failed} of {sum(len(repeat.records) for repeat in repeats)} requests failed")
        if len(repeats) == len(courses):
            remarks.append("one repeat says nothing of how far its figures can be trusted: there are no intervals")
        self._notes.update(dict.fromkeys(filter(None, remarks)))

    def _settings(self, options: BenchOptions, courses: Sequence[_Course], counters: Mapping[str, Counter]) -> Settings:
        first = courses[0]
        ways = [way for way in get_args(Counted) if any(way in counter.ways for counter in counters.values())]
        if len(ways) > 1:
            self._notes[f"output tokens were counted in several ways: {', '.join(sorted(ways))}"] = None
        return Settings(
            seed=options.seed,
            repeats=options.repeats,
            warmup=options.warmup,
            requests=None if options.duration is not None else first.workload.count,
            duration=options.duration,
            input_tokens=None if "input_tokens" in options.sweep else first.setting.input_tokens,
            output_tokens=None if "output_tokens" in options.sweep else first.setting.output_tokens,
            ignore_end=all(course.workload.whole(course.setting) for course in courses),
            dataset=options.dataset.name if options.dataset else "",
            prompts=blake3("".join(self._digests).encode()).hexdigest(),
            stream=options.stream,
            sampling=dict(options.sampling),
            goodput=dict(options.goodput),
            sweep=dict(options.sweep),
            quality=blake3(_text(options.quality).encode()).hexdigest() if options.quality else "",
            counted=ways[-1] if ways else "server",
        )

    def _subject(self, target: Target) -> Subject:
        model = target.model
        return Subject(
            name=model.name,
            front=model.front,
            runtime=str(model.runtime),
            entry=model.entry,
            keys=model.keys,
            image=self._image(model.serving.image) if model.serving and model.serving.image else "",
            tokenizer=self._outside.tokens(target.tokenizer).digest,
        )

    def _image(self, key: str) -> str:
        """The id of the image that the artifact names; the key itself where the store no longer holds it."""
        artifact = self._store.find(key)
        return noted(artifact.path)["id"] if artifact and (artifact.path / IMAGE).is_file() else key

    def _machine(self) -> Machine:
        cpu, cores, memory = processor()
        gpus = tuple(gpu.name for gpu in self._outside.machine.gpus())
        platform = self._outside.host().platform
        return Machine(cpu=cpu, cores=cores, memory=memory, platform=platform, gpus=gpus, driver=self._outside.machine.driver())

    def _provider(self, course: _Course, ports: Ports) -> Provider:
        offer = course.workload.offer
        request = replace(seeded(over(offer.request, course.setting.sampling), course.workload.options.seed), stream=False)
        inputs = stated(request, self._outside.metadata(course.target.address, request.model))
        url = f"http://{ports.at(ports.http)}/v2/models/{request.model}/generate"
        return Provider(course.label, url, inputs, request.stop)


def keep(found: Results, folder: Path) -> Path:
    """Write ``found`` into ``folder`` under a name of its own: models and the moment."""
    folder.mkdir(parents=True, exist_ok=True)
    names = "-".join(subject.name for subject in found.subjects)[:80]
    place = folder / f"{names}-{found.made[:19].replace(':', '')}.json"
    number = 1
    while place.exists():
        number += 1
        place = place.with_stem(f"{place.stem.partition('_')[0]}_{number}")
    place.write_text(results.write(found), encoding="utf-8")
    return place


def _prompt(exam: Exam, offer: Offer) -> str:
    if exam.messages:
        return offer.render([(each.role, each.content) for each in exam.messages])
    return offer.render([("user", exam.text)]) if exam.chat else exam.text


def _text(file: Path) -> str:
    """A file that a person named; BenchError where it cannot be read."""
    return texts.read(file, BenchError)


def _short(repeat: Repeat) -> str:
    found = figures.figures([repeat])
    parts = [f"{len(repeat.records)} requests in {repeat.wall:.1f} s"]
    if "output_tokens_per_s" in found:
        parts.append(f"{found['output_tokens_per_s'].value:.1f} tokens/s")
    if repeat.errors:
        parts.append(f"{sum(repeat.errors.values())} failed")
    return ", ".join(parts)
