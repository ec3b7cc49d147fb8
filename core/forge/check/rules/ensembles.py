"""Who asks whom: the steps of ensembles, tensor by tensor, and the models that bls asks."""

from collections.abc import Iterator

from forge.check.literals import ADDRESS
from forge.check.model import Config, Kind, Model, Repository, Tensor
from forge.check.rules.rule import Found

Ends = dict[str, list[tuple[str, Config, Tensor]]]
"""An ensemble's tensor -> every model that has it at one of its ends."""


def ensemble_model(repository: Repository) -> Iterator[Found]:
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


def ensemble_tensor(repository: Repository) -> Iterator[Found]:
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


def ensemble_flow(repository: Repository) -> Iterator[Found]:
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


def ensemble_type(repository: Repository) -> Iterator[Found]:
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


def ensemble_batch(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.ENSEMBLE):
        for step in config.steps:
            member = repository.by_folder.get(step.model)
            if member is not None and (theirs := member.config) is not None and _larger(config, theirs):
                what = f"takes batches of {config.max_batch_size}, and {step.model} of {theirs.max_batch_size}"
                yield Found(model.file, what, f"set max_batch_size to {theirs.max_batch_size}", "max_batch_size")


def bls_batch(repository: Repository) -> Iterator[Found]:
    for model, config in repository.of(Kind.BLS):
        for name in repository.asked[model.folder].values():
            member = repository.by_folder.get(name)
            if member is not None and (theirs := member.config) is not None and _larger(config, theirs):
                what = f"takes batches of {config.max_batch_size}, and asks {name}, which takes {theirs.max_batch_size}"
                yield Found(model.file, what, f"set max_batch_size to {theirs.max_batch_size}", "max_batch_size")


def bls_target(repository: Repository) -> Iterator[Found]:
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


def bls_port(repository: Repository) -> Iterator[Found]:
    for model in repository.models:
        for path, text in model.sources.items():
            if ADDRESS in text:
                yield Found(f"{model.folder}/{path}", f"it asks {ADDRESS} for the other models' configs", needle=ADDRESS)
