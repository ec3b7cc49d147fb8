"""A tensorrt_llm_bls in NVIDIA's manner, written for these tests: two of its siblings' names are literals in model.py.

Like the original it keeps them in a decoder's attributes, which lib/triton_decoder.py reads for each request.
"""

from forge.schema.values import TextFile

MODEL = """
import json
import triton_python_backend_utils as pb_utils
from lib.triton_decoder import TritonDecoder


def stated(parameters, name, default=None):
    value = parameters.get(name, {}).get("string_value", "")
    return default if value == "" or value.startswith("${") else value


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = config["parameters"]
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.llm_model_name = stated(parameters, "tensorrt_llm_model_name", "tensorrt_llm")
        self.decoder = TritonDecoder(
            streaming=self.decoupled,
            accumulate=stated(parameters, "accumulate_tokens", "").lower() in ("true", "yes", "1", "t"),
            preproc_model_name="preprocessing",
            postproc_model_name="postprocessing",
            llm_model_name=self.llm_model_name,
            draft_llm_model_name=stated(parameters, "tensorrt_llm_draft_model_name"))

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                for text in self.decoder.decode(request):
                    sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("text_output", text)]))
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as error:
                answer = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
                sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

DECODER = """
import numpy as np
import triton_python_backend_utils as pb_utils

THERE = {
    "INPUT_ID": "input_ids", "REQUEST_INPUT_LEN": "input_lengths", "REQUEST_OUTPUT_LEN": "request_output_len",
    "OUT_END_ID": "end_id", "OUT_PAD_ID": "pad_id",
}


class TritonDecoder:
    def __init__(self, streaming=False, accumulate=False, preproc_model_name="preprocessing",
                 postproc_model_name="postprocessing", llm_model_name="tensorrt_llm", draft_llm_model_name=None):
        self.streaming = streaming
        self.accumulate = accumulate
        self.preproc_model_name = preproc_model_name
        self.postproc_model_name = postproc_model_name
        self.llm_model_name = llm_model_name
        self.draft_llm_model_name = draft_llm_model_name

    def decode(self, request):
        prompt = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
        length = pb_utils.get_input_tensor_by_name(request, "max_tokens").as_numpy().astype(np.int32)
        asked = [pb_utils.Tensor("QUERY", prompt), pb_utils.Tensor("REQUEST_OUTPUT_LEN", length)]
        before = self._asked(pb_utils.InferenceRequest(
            model_name=self.preproc_model_name, inputs=asked, requested_output_names=list(THERE)))
        given = [pb_utils.Tensor(there, before[here]) for here, there in THERE.items() if before.get(here) is not None]
        stream = pb_utils.get_input_tensor_by_name(request, "stream")
        streams = self.streaming if stream is None else stream.as_numpy().reshape(1, 1)
        self.tokens = np.empty((1, 1, 0), np.int32)
        given += [pb_utils.Tensor("streaming", np.array(streams).reshape(1, 1)),
                  pb_utils.Tensor("runtime_top_k", np.array([[1]], np.int32)),
                  pb_utils.Tensor("exclude_input_in_output", np.array([[True]]))]
        request = pb_utils.InferenceRequest(
            model_name=self.llm_model_name, inputs=given, requested_output_names=["output_ids", "sequence_length"])
        for response in request.exec(decoupled=True):
            held = self._read(response)
            if held.get("output_ids") is not None:
                yield self._text(held)

    def _text(self, held):
        tokens, length = held["output_ids"], held["sequence_length"]
        if self.accumulate and self.streaming:
            if tokens.shape[1] != 1:
                raise Exception("Accumulation of tokens is only implemented for beam width = 1")
            tokens = self.tokens = np.concatenate((self.tokens, tokens), axis=2)
            length = np.array([[tokens.shape[2]]], np.int32)
        inputs = [pb_utils.Tensor("TOKENS_BATCH", tokens), pb_utils.Tensor("SEQUENCE_LENGTH", length)]
        after = pb_utils.InferenceRequest(
            model_name=self.postproc_model_name, inputs=inputs, requested_output_names=["OUTPUT"])
        return self._asked(after)["OUTPUT"]

    def _asked(self, request):
        return self._read(request.exec())

    def _read(self, response):
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
"""

CONFIG = 'name: "tensorrt_llm_bls"\nbackend: "python"\nmodel_transaction_policy { decoupled: true }\n'


def bls(model: str = MODEL) -> tuple[TextFile, ...]:
    """Its Python files, by their paths in the model's folder."""
    return (TextFile("1/model.py", model), TextFile("1/lib/__init__.py", ""), TextFile("1/lib/triton_decoder.py", DECODER))
