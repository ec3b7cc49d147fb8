"""What the vLLM of a Python takes and serves, as JSON: ``python facts.py FILE``. Reads sources alone, and imports none of them.

Run by the Python of vLLM's environment, or of an image, where nothing of forge's is. FILE says of

- ``arguments``: AsyncEngineArgs, by name;
- ``architectures``: those in its registry, for text, embeddings and all else;
- ``gone``: those that it says it has given up, with its last version that had them, or who has them now;
- ``transformers``: the classes of transformers' models that generate, which vLLM may serve where its registry has none.

What cannot be told is left out: where plugins may register more, or where the sources stand otherwise.
"""

import ast
import json
import re
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

REGISTRY = "model_executor/models/registry.py"
ARGUMENTS = "engine/arg_utils.py"
PLUGINS = "vllm.general_plugins"
_TABLE = re.compile(r"_[A-Z_]+_MODELS")
_GONE = ("_PREVIOUSLY_SUPPORTED_MODELS", "_OOT_SUPPORTED_MODELS")
_ALL = "_VLLM_MODELS"
_CLASS = re.compile(r"^(?:class )?(\w+(?:ForCausalLM|ForConditionalGeneration|LMHeadModel))\b", re.MULTILINE)

Known = dict[str, object]


def read(vllm: Path | None, transformers: Path | None, *, extended: bool = False) -> Known:
    """What stands in the folders of the two packages; where vLLM is ``extended`` by plugins its registry is not all."""
    found: Known = {}
    if vllm is not None and (vllm / ARGUMENTS).is_file():
        found["arguments"] = sorted({*_fields(_tree(vllm / ARGUMENTS), "AsyncEngineArgs")})
    if vllm is not None and not extended and (vllm / REGISTRY).is_file():
        found |= _registry(_tree(vllm / REGISTRY))
    if transformers is not None and (transformers / "models").is_dir():
        texts = (file.read_text("utf-8", "replace") for file in (transformers / "models").rglob("modeling_*.py"))
        found["transformers"] = sorted({name for text in texts for name in _CLASS.findall(text)})
    return found


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def _fields(tree: ast.Module, name: str) -> list[str]:
    """The fields of a dataclass, and of those of its bases that stand in the same file."""
    node = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if node is None:
        return []
    stated = [each for each in node.body if isinstance(each, ast.AnnAssign) and "ClassVar" not in ast.unparse(each.annotation)]
    own = [each.target.id for each in stated if isinstance(each.target, ast.Name) and not each.target.id.startswith("_")]
    bases = [field for base in node.bases if isinstance(base, ast.Name) for field in _fields(tree, base.id)]
    return [*bases, *own]


def _registry(tree: ast.Module) -> Known:
    held = dict(filter(None, map(_table, tree.body)))
    if _ALL not in held:
        return {}
    gone = {name: said for table in _GONE for name, said in held.get(table, {}).items()}
    return {"architectures": sorted({name for table in held.keys() - {*_GONE} for name in held[table]}), "gone": gone}


def _table(node: ast.stmt) -> "tuple[str, dict[str, str]] | None":
    """A dictionary of architectures, by its name: the keys that are written out, with what is text of their values."""
    if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
        return None
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    if not isinstance(target, ast.Name) or not _TABLE.fullmatch(target.id):
        return None
    pairs = zip(node.value.keys, node.value.values, strict=True)
    return target.id, {str(key.value): str(getattr(said, "value", "")) for key, said in pairs if isinstance(key, ast.Constant)}


def _package(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def main(file: Path) -> None:
    """Write what this Python's vLLM takes and serves."""
    extended = any(not plugin.value.startswith("vllm.") for plugin in entry_points(group=PLUGINS))
    file.write_text(json.dumps(read(_package("vllm"), _package("transformers"), extended=extended)), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
