"""What a bls model's Python says of its siblings: names that NVIDIA's code has as literals, found by syntax tree."""

import ast
from collections.abc import Iterator

KEYWORDS = {"preproc_model_name": "preprocessing", "postproc_model_name": "postprocessing"}
"""Keyword arguments of NVIDIA's TritonDecoder, in every version -> whom they name."""
ADDRESS = "localhost:8001"
"""Where NVIDIA's bls of 2026 asks for a model's config, whatever port the server was given."""


def names(path: str, source: str) -> dict[str, str]:
    """Whom the code at ``path`` names by literals; nothing for code that reads parameters for it.

    A file of another name (``default_model_filename``) that stands over model.py has the last word, and reads parameters.
    """
    if path.rpartition("/")[2] != "model.py" or "preprocessing_model_name" in source:
        return {}
    return dict(_literals(source))


def _literals(source: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # Triton's own words for it are better than ours
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for word in node.keywords:
                if word.arg in KEYWORDS and isinstance(word.value, ast.Constant) and isinstance(word.value.value, str):
                    yield KEYWORDS[word.arg], word.value.value
