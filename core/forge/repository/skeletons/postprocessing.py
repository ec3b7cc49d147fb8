"""Token ids to text, in Triton's Python backend and on ``tokenizers`` alone.

One answer at a time: what the ensemble needs. A stream through the ensemble is detokenized token by token, so a character of
several tokens cannot come out whole there; tensorrt_llm_bls keeps what is needed to do better.
"""

# Triton puts its classes into triton_python_backend_utils after this module has run: annotations must wait.
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray
from tokenizers import Tokenizer


class TritonPythonModel:
    """TOKENS_BATCH [batch, beams, length] and SEQUENCE_LENGTH [batch, beams] -> OUTPUT [batch, beams]."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        stated = {key: value["string_value"] for key, value in parameters.items()}
        file = Path(stated["tokenizer_dir"], "tokenizer.json")
        if not file.is_file():
            raise pb_utils.TritonModelException(f"{file} is missing: this model reads fast tokenizers (tokenizer.json) only")
        self._tokenizer = Tokenizer.from_file(str(file))
        self._skip = stated.get("skip_special_tokens", "true").strip().lower() in ("true", "1", "yes", "t")

    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        tokens, lengths = (pb_utils.get_input_tensor_by_name(request, name) for name in ("TOKENS_BATCH", "SEQUENCE_LENGTH"))
        if tokens is None or lengths is None:
            return _refusal("TOKENS_BATCH and SEQUENCE_LENGTH have to go together")
        try:
            texts = [
                [self._decode(ids, length) for ids, length in zip(*sequences, strict=True)]
                for sequences in zip(tokens.as_numpy(), lengths.as_numpy(), strict=True)
            ]
        except (OverflowError, TypeError, ValueError) as error:  # ids that no token can have; shapes that do not fit
            return _refusal(f"TOKENS_BATCH [batch, beams, length] and SEQUENCE_LENGTH [batch, beams] say no tokens: {error}")
        encoded = [[text.encode() for text in row] for row in texts]
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array(encoded, dtype=object))])

    def _decode(self, ids: NDArray[np.generic], length: np.generic) -> str:
        return self._tokenizer.decode(ids[: int(length)].tolist(), skip_special_tokens=self._skip)


def _refusal(problem: str) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(problem, pb_utils.TritonError.INVALID_ARG))
