"""Who asks whom: the steps of ensembles, tensor by tensor, and the models that bls asks."""

from collections.abc import Iterator

from forge.check.literals import ADDRESS
from forge.check.model import Config, Kind, Model, Repository, Tensor
from forge.check.rules.rule import Found, Rule, Severity

Ends = dict[str, list[tuple[str, Config, Tensor]]]
"""An ensemble's tensor -> every model that has it at one of its ends."""


def _models(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENSEMBLE):
        for step in config.steps:
            if step.model not in repository.by_folder:
                yield Found(
                    model.file, f"a step asks {step.model!r}, and there is no such model", _similar(repository, step.model),
                    needle=f'"{step.model}"',
                )  # fmt: skip


def _similar(repository: Repository, name: str) -> str:
    near = [folder for folder in repository.by_folder if folder.endswith(name) or name.endswith(folder)]
    return f"did it become {near[0]!r}?" if near else f"there are: {', '.join(repository.by_folder) or 'none'}"


def _tensors(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENSEMBLE):
        for at, step in enumerate(config.steps):
            member = repository.by_folder.get(step.model)
            if member is None or member.config is None:
                continue
            for way, names in (("input", step.inputs), ("output", step.outputs)):
                there = {tensor.name for tensor in (member.config.inputs if way == "input" else member.config.outputs)}
                for name in names:
                    if name not in there:
                        what = f"step {at + 1} maps {name!r}, and {step.model} has no such {way}"
                        yield Found(model.file, what, needle=f'"{name}"')
            for tensor in member.config.inputs:
                if not tensor.optional and tensor.name not in step.inputs:
                    yield Found(model.file, f"step {at + 1} leaves out {tensor.name!r}, which {step.model} requires")


def _flow(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENSEMBLE):
        given = {tensor.name for tensor in config.inputs}
        wanted = {tensor.name for tensor in config.outputs}
        written = {name for step in config.steps for name in step.outputs.values()}
        read = {name for step in config.steps for name in step.inputs.values()}
        for name in sorted(wanted - written):
            yield Found(model.file, f"no step writes the output {name!r}", needle=f'"{name}"')
        for name in sorted(read - written - given):
            yield Found(model.file, f"a step reads {name!r}, and nobody writes it", needle=f'"{name}"')
        for name in sorted((written | given) - wanted - read):
            yield Found(model.file, f"{name!r} is written, and nobody reads it", needle=f'"{name}"')


def _ends(repository: Repository, ensemble: str, config: Config) -> Ends:
    """Every tensor of an ensemble with all that say what it is, itself first, then in the order of its steps."""
    ends: Ends = {}
    for tensor in config.tensors():
        ends.setdefault(tensor.name, []).append((ensemble, config, tensor))
    for step in config.steps:
        member = repository.by_folder.get(step.model)
        if member is None or member.config is None or member.config.guessed:
            continue
        for names, tensors in ((step.outputs, member.config.outputs), (step.inputs, member.config.inputs)):
            known = {tensor.name: tensor for tensor in tensors}
            for theirs, ours in names.items():
                if theirs in known:
                    ends.setdefault(ours, []).append((step.model, member.config, known[theirs]))
    return ends


def _types(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENSEMBLE):
        for name, ends in _ends(repository, model.folder, config).items():
            first, _, tensor = ends[0]
            for end in ends[1:]:
                other, _, theirs = end
                if theirs.type != tensor.type:
                    said = f"{tensor.type} in {first} and {theirs.type} in {other}"
                elif not _alike(_shape(ends[0]), _shape(end)):
                    said = f"{list(tensor.dims)} in {first} and {list(theirs.dims)} in {other}"
                else:
                    continue
                yield Found(model.file, f"{name!r} is {said} (there {theirs.name!r})", needle=f'"{name}"')


def _shape(end: tuple[str, Config, Tensor]) -> tuple[int, ...]:
    """With the batch in front, where the model has one."""
    _, config, tensor = end
    return (-1, *tensor.dims) if config.max_batch_size > 0 else tensor.dims


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _larger(config: Config, other: Config) -> bool:
    return config.max_batch_size > other.max_batch_size and not (config.guessed or other.guessed)


def _batch(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENSEMBLE):
        for step in config.steps:
            member = repository.by_folder.get(step.model)
            if member is not None and (theirs := member.config) is not None and _larger(config, theirs):
                what = f"takes batches of {config.max_batch_size}, and {step.model} of {theirs.max_batch_size}"
                yield Found(model.file, what, f"set max_batch_size to {theirs.max_batch_size}", "max_batch_size")


def _bls_batch(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.BLS):
        for name in repository.asked[model.folder].values():
            member = repository.by_folder.get(name)
            if member is not None and (theirs := member.config) is not None and _larger(config, theirs):
                what = f"takes batches of {config.max_batch_size}, and asks {name}, which takes {theirs.max_batch_size}"
                yield Found(model.file, what, f"set max_batch_size to {theirs.max_batch_size}", "max_batch_size")


def _targets(repository: Repository) -> Iterator[Found]:
    for model, _ in repository.of(Kind.BLS):
        for what, name in repository.asked[model.folder].items():
            if name not in repository.by_folder:
                where = f"{model.folder}/{model.code}" if _literal(model, name) else model.file
                yield Found(
                    where, f"it asks {name!r} for {what}, and there is no such model", _similar(repository, name),
                    needle=f'"{name}"',
                )  # fmt: skip


def _literal(model: Model, name: str) -> bool:
    """Whether the code says it, and no parameter."""
    stated = model.config.parameters.values() if model.config else ()
    return name not in stated and f'"{name}"' in model.sources.get(model.code, "")


def _address(repository: Repository) -> Iterator[Found]:
    for model in repository.models:
        for path, text in model.sources.items():
            if ADDRESS in text:
                yield Found(f"{model.folder}/{path}", f"it asks {ADDRESS} for the other models' configs", needle=ADDRESS)


RULES = (
    Rule(
        "ensemble-model",
        Severity.ERROR,
        "an ensemble asks a model that is not there",
        "The steps of an ensemble name their models literally. Renaming a folder, or giving two models prefixes, "
        "leaves them behind.",
        "Invalid argument: ensemble ensemble contains models that are not available or ambiguous: x-pre",
        "name the folder that is there in the step's model_name",
        _models,
    ),
    Rule(
        "ensemble-tensor",
        Severity.ERROR,
        "an ensemble maps a tensor that the model does not have, or leaves out one that it requires",
        "TensorRT-LLM 0.20 renamed tensors (min_length became min_tokens, random_seed became seed): an ensemble of "
        "one version over models of another asks for names that are gone.",
        "Invalid argument: in ensemble ensemble, ensemble tensor _TOKENS_BATCH is mapping to non-existing input NOPE "
        "in model postprocessing",
        "take all five models from one version's skeletons, or map the name that is there",
        _tensors,
    ),
    Rule(
        "ensemble-flow",
        Severity.ERROR,
        "a tensor of an ensemble is read and never written, or written and never read",
        "Triton follows every tensor from the ensemble's inputs to its outputs, and takes a loose end for a mistake.",
        "output 'text_output' for ensemble 'ensemble' is not written: at least one of its depending tensors, "
        "'_NOBODY', is not connected\n"
        "ensemble tensor '_SEQUENCE_LENGTH' is unused in ensemble 'ensemble'",
        "give both ends the same name in output_map and input_map, or take the loose one away",
        _flow,
    ),
    Rule(
        "ensemble-type",
        Severity.ERROR,
        "the two ends of an ensemble's tensor are of different types or shapes",
        "Triton copies tensors between steps and converts nothing. logits_datatype has to be the same in ensemble "
        "and tensorrt_llm, and what one version has as INT32 another may not.",
        "Invalid argument: in ensemble ensemble, ensemble tensor _TOKENS_BATCH: inconsistent data type: TYPE_INT32 "
        "is inferred from model tensorrt_llm while TYPE_INT64 is inferred from model postprocessing",
        "give both ends one data_type and dims",
        _types,
    ),
    Rule(
        "ensemble-batch",
        Severity.ERROR,
        "an ensemble takes larger batches than one of its models",
        "triton_max_batch_size is filled into every config by itself, and the ensemble's may not be above any member's.",
        "Invalid argument: ensemble ensemble allows maximum batch size 8, but it contains model postprocessing which "
        "only allows maximum batch size to be 4",
        "fill the same triton_max_batch_size everywhere",
        _batch,
    ),
    Rule(
        "bls-batch",
        Severity.WARNING,
        "bls takes larger batches than a model that it asks",
        "bls hands its whole batch to preprocessing. Nothing is checked when it is loaded: requests of more rows fail.",
        "inference request batch-size must be <= 4 for 'preprocessing'",
        "fill the same triton_max_batch_size everywhere",
        _bls_batch,
    ),
    Rule(
        "bls-target",
        Severity.ERROR,
        "bls asks a model that is not there",
        'tensorrt_llm_model_name and tensorrt_llm_draft_model_name are parameters, but "preprocessing" and '
        '"postprocessing" are literals in NVIDIA\'s tensorrt_llm_bls/1/model.py, in every version. Renamed siblings '
        "load, and every request fails.",
        "Failed for execute the inference request. Model 'preprocessing' is not ready.",
        "set the parameter, or let default_model_filename name a subclass that sets the two names, as `forge build` does",
        _targets,
    ),
    Rule(
        "bls-port",
        Severity.REMARK,
        "bls asks gRPC at localhost:8001",
        "NVIDIA's bls of 2026 asks the server itself for a model's config, at a fixed address: it works only where "
        "gRPC listens on port 8001.",
        "failed to connect to all addresses; last error: ... ipv4:127.0.0.1:8001: Failed to connect to remote host",
        "serve with --grpc-port 8001",
        _address,
    ),
)
