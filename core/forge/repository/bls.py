"""How tensorrt_llm_bls learns whom to ask when its siblings stand under a prefix. Pure: it reads code as syntax trees.

forge's own model takes every name from its config. NVIDIA's takes those of engine and draft from there and has two as
literals in 1/model.py, in every version from 0.9 on: it hands them to its decoder, which reads them back from two attributes
for each request. So NVIDIA's files stay as they are, and a subclass in a file beside them sets the attributes.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence

from forge.errors import Problem, RepositoryError
from forge.files import texts
from forge.schema.values import Edit, Names, Role, TextFile

FILE = "forge_bls.py"
"""The subclass; config.pbtxt names it as default_model_filename."""
PARAMETERS = ("preprocessing_model_name", "postprocessing_model_name")
"""The config parameters that it reads; NVIDIA's own code knows neither."""
ENGINE, DRAFT = "tensorrt_llm_model_name", "tensorrt_llm_draft_model_name"
"""Those that NVIDIA's code reads itself."""
ATTRIBUTES = ("preproc_model_name", "postproc_model_name")
"""Of the decoder: keyword arguments of its class, and what it reads for each request."""
MODEL = "1/model.py"
WHY = "NVIDIA's code has the names of preprocessing and postprocessing as literals"
WAY_OUT = (
    "build it alone, without --prefixed, into a --repository of its own, or with a runtime.image whose tensorrt_llm_bls "
    "forge knows (24.10 to 26.07)"
)


def beside(bls: Sequence[TextFile]) -> tuple[TextFile, ...]:
    """What has to stand beside the files of a tensorrt_llm_bls for it to be told its siblings: the subclass, or nothing."""
    code = {file.path: file.content for file in bls}
    if MODEL not in code or _asks_by_parameter(code[MODEL]):
        return ()
    text = texts.part("forge.repository.skeletons", FILE)
    return (TextFile(f"1/{FILE}", text),)


def problems(bls: Sequence[TextFile], *, draft: bool = False) -> Iterator[Problem]:
    """What is not as expected in the files of a tensorrt_llm_bls, by their paths in its folder, and rules out a prefix."""
    code = {file.path: file.content for file in bls if file.path.startswith("1/") and file.path.endswith(".py")}
    if MODEL not in code:
        yield _unexpected(MODEL, "the model's Python code", "there is no such file")
        return
    trees: dict[str, ast.Module] = {}
    for path, text in code.items():
        try:
            trees[path] = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            yield _unexpected(path, "Python that the interpreter of forge reads", str(error))
            return
    if _asks_by_parameter(code[MODEL]):
        return
    for name in (ENGINE, DRAFT) if draft else (ENGINE,):
        if not _says(trees[MODEL], name):
            yield _unexpected(MODEL, f"that the config parameter {name} is read", "it is not")
    yield from _unlike(trees)


def edits(names: Names, skeletons: Sequence[TextFile]) -> tuple[Edit, ...]:
    """What a repository holds of forge's in a model that is NVIDIA's, for the manifest."""
    if all(file.path != f"{Role.BLS}/1/{FILE}" for file in skeletons):
        return ()
    folder = names.of(Role.BLS)
    return (
        Edit(f"{folder}/1/{FILE}", "written: a subclass of NVIDIA's model.py that sets its decoder's two attributes", WHY),
        Edit(f"{folder}/config.pbtxt", f"default_model_filename is {FILE}; it reads {' and '.join(PARAMETERS)}", WHY),
    )


def compiled(path: str, text: str) -> None:
    """RepositoryError where what forge lays as a model's code is no Python."""
    try:
        compile(text, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        what = f"the code that was to be written is no Python: {error}"
        raise RepositoryError(what, where=path, hint="This is a mistake in forge: please report it.") from error


def _unexpected(path: str, expected: str, found: str) -> Problem:
    return Problem(f"{Role.BLS}/{path}", f"expected {expected}, to give its siblings a prefix: {found}", WAY_OUT)


def _asks_by_parameter(text: str) -> bool:
    """Whether code takes preprocessing's name from its config, as forge's own does; code that is no Python does not."""
    try:
        return _says(ast.parse(text), PARAMETERS[0])
    except (SyntaxError, ValueError):
        return False


def _says(tree: ast.AST, text: str) -> bool:
    return any(isinstance(node, ast.Constant) and node.value == text for node in ast.walk(tree))


def _unlike(trees: Mapping[str, ast.Module]) -> Iterator[Problem]:
    """What sets code apart from NVIDIA's: from what the subclass relies on."""
    call = _decoder(trees[MODEL])
    if call is None:
        expected = "that TritonPythonModel.initialize sets self.decoder to a decoder that it makes"
        yield _unexpected(MODEL, expected, "it does not")
        return
    given = {word.arg for word in call.keywords}
    for name in ATTRIBUTES:
        if name not in given:
            yield _unexpected(MODEL, f"the argument {name} of {ast.unparse(call.func)}()", "it is not given")
    yield from _decoding(trees)
    for path, tree in trees.items():
        for line, name in _literals(tree):
            expected = "that no request to another model names it by a literal"
            yield _unexpected(path, expected, f"line {line} asks {name!r}")


def _decoder(tree: ast.Module) -> ast.Call | None:
    """The call whose result ``TritonPythonModel.initialize`` keeps as ``self.decoder``."""
    models = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TritonPythonModel")
    inits = (node for model in models for node in model.body if isinstance(node, ast.FunctionDef) and node.name == "initialize")
    for node in (inner for init in inits for inner in ast.walk(init)):
        if not isinstance(node, ast.Assign) or all(_attribute(target) != "decoder" for target in node.targets):
            continue
        return node.value if isinstance(node.value, ast.Call) else None
    return None


def _decoding(trees: Mapping[str, ast.Module]) -> Iterator[Problem]:
    """Whether the decoder looks the two names up when it asks, and not once and for all when it is made."""
    functions = [
        node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name not in ("__init__", "initialize")
    ]
    read = {
        _attribute(node)
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    where = next((path for path in trees if path.endswith("triton_decoder.py")), MODEL)
    for name in ATTRIBUTES:
        if name not in read:
            yield _unexpected(where, f"that the decoder reads self.{name} for each request", "it does not")


def _attribute(node: ast.AST) -> str:
    """``x`` of ``self.x``; empty for anything else."""
    own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if own and isinstance(node, ast.Attribute) else ""


def _literals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of every request that names its model by a literal."""
    for node in ast.walk(tree):
        for word in node.keywords if isinstance(node, ast.Call) else ():
            if word.arg == "model_name" and isinstance(word.value, ast.Constant):
                yield word.value.lineno, str(word.value.value)
