"""Streaming: models that answer more than once, and who asks them."""

from collections.abc import Iterator

from forge.check.model import Chain, Config, Kind, Model, Repository, table
from forge.check.rules.rule import Found


def pairs(repository: Repository) -> Iterator[tuple[Model, Config, Model, Config]]:
    """Every bls model with the engines that it asks."""
    for model, config in repository.of(Kind.BLS):
        names = repository.asked[model.folder]
        for name in (names.get("engine", ""), names.get("draft", "")):
            member = repository.by_folder.get(name)
            if member is not None and member.config is not None and repository.kinds[name] is Kind.ENGINE:
                yield model, config, member, member.config


def decoupled_pair(repository: Repository) -> Iterator[Found]:
    for model, config, member, engine in pairs(repository):
        if config.decoupled != engine.decoupled and not (config.guessed or engine.guessed):
            said = ", ".join(f"{m.folder} says {str(c.decoupled).lower()}" for m, c in ((model, config), (member, engine)))
            yield Found(model.file, f"decoupled has to be the same in both models: {said}", needle="decoupled")


def whole_answers(repository: Repository) -> Iterator[Found]:
    asks = {member.folder for _, config, member, engine in pairs(repository) if config.decoupled != engine.decoupled}
    for model, config in repository.of(Kind.ENGINE):
        if not config.decoupled and not config.guessed and model.folder not in asks:
            yield Found(model.file, f"{model.folder} answers whole: a request that asks for a stream is refused")
    for model, config in repository.of(Kind.LLMAPI):
        if not (config.decoupled or config.guessed or table(model.arguments.get("triton_config")).get("decoupled")):
            path = next((path for path in model.sources if path.endswith(".yaml")), "config.pbtxt")
            what = f"{model.folder} answers whole: a request that asks for a stream is refused"
            yield Found(f"{model.folder}/{path}", what, "set triton_config: decoupled: True in model.yaml", "decoupled")


def stream_blanks(repository: Repository) -> Iterator[Found]:
    for chain in repository.chains:
        config, post = chain.head.config, chain.postprocessing and chain.postprocessing.config
        tokenizer = repository.tokenizer(post) if post else None
        if config is None or tokenizer is None or not tokenizer.strips or not _streams(chain):
            continue
        if repository.kinds[chain.head.folder] is Kind.ENSEMBLE:
            others = [each for each in repository.chains if each is not chain and each.engine is chain.engine]
            if not any(repository.kinds[each.head.folder] is Kind.BLS for each in others):
                what = "a stream through it is decoded token by token, and this tokenizer drops a blank each time"
                yield Found(chain.head.file, what, "ask it without streaming, or stream through tensorrt_llm_bls")
        elif "Detokenizer" not in chain.head.sources.get(chain.head.code, "") and not _accumulates(config):
            engine = repository.engine(chain.engine.config) if chain.engine and chain.engine.config else None
            beams = engine is not None and engine.limit("max_beam_width") > 1
            fix = "build with max_beam_width = 1 and accumulate_tokens true, or ask without streaming" if beams else ""
            what = "accumulate_tokens is off, and this tokenizer drops a blank at the start of each piece of a stream"
            yield Found(chain.head.file, what, fix, "accumulate_tokens")


def bls_queue(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.BLS):
        if not (config.queued or config.guessed):
            yield Found(model.file, "no batcher keeps the requests that wait for it: thousands at once can break Triton")


def _streams(chain: Chain) -> bool:
    return chain.engine is not None and chain.engine.config is not None and chain.engine.config.decoupled


def _accumulates(config: Config) -> bool:
    """As NVIDIA's bls reads it."""
    return config.stated("accumulate_tokens").lower() in ("true", "yes", "1", "t")
