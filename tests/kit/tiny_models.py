"""Models for Triton's Python backend that do next to nothing: enough to see a server start, fail, stream and cancel."""

from pathlib import Path

IDENTITY = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "text_input") for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("text_output", one.as_numpy())]) for one in inputs]
"""

ASKS_ALWAYS = """
class TritonPythonModel:
    def initialize(self, args):
        self.baseurl = "localhost:8001/v2/models/"

    def execute(self, requests):
        try:
            self.decoder.load_model_configs(model_config_api_baseurl=self.baseurl, target_model_name="tensorrt_llm")
        except Exception:
            return None
"""
"""As NVIDIA's bls of TensorRT-LLM 1.2 does it."""

BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("the tokenizer folder is empty")
"""

SLOW = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        print("slow begins", flush=True)
        time.sleep(60)
"""

# Speaks the tensors of tensorrt_llm_bls: says each word of the prompt, beam by beam, and what else it was asked for.
SPEAKER = """
import json, pathlib, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils

def one(request, name, default=None):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1).tolist()

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.notes = pathlib.Path(args["model_repository"]) / "cancelled"

    def execute(self, requests):
        if not self.decoupled:
            return [self.answer(one(request, "text_input")[0].decode()) for request in requests]
        for request in requests:
            threading.Thread(target=self.speak, args=(request, request.get_response_sender())).start()

    def answer(self, *texts):
        words = np.array([[text.encode() for text in texts]], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("text_output", words)])

    def speak(self, request, sender):
        prompt = one(request, "text_input")[0].decode()
        if prompt == "fail":
            error = pb_utils.TritonError("prompt length (9) exceeds maximum input length (8)")
            sender.send(pb_utils.InferenceResponse(error=error), flags=1)
            return
        if prompt == "what":
            asked = {name: one(request, name) for name in ("max_tokens", "temperature", "top_k", "random_seed", "stop_words")}
            text = json.dumps(asked, default=bytes.decode)
            sender.send(self.answer(text), flags=1)
            return
        beams = one(request, "beam_width", [1])[0]
        for word in prompt.split()[:one(request, "max_tokens")[0]] * (10**6 if prompt.startswith("forever") else 1):
            if sender.is_cancelled():
                self.notes.write_text("yes")
                break
            sender.send(self.answer(*[word.upper() if beam else word for beam in range(beams)]))
            time.sleep(0.01)
        sender.send(flags=1)
"""

# Speaks the tensors of NVIDIA's llmapi model, in its manner: every answer of a stream holds the whole text so far, the prompt
# stands in front unless it is excluded, and a stop word is cut off when it is whole.
LLMAPI = """
import json, threading
import numpy as np
import triton_python_backend_utils as pb_utils

def one(request, name, default=None):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1).tolist()

class TritonPythonModel:
    def initialize(self, args):
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(json.loads(args["model_config"]))

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.speak, args=(request, request.get_response_sender())).start()

    def answer(self, text):
        return pb_utils.InferenceResponse([pb_utils.Tensor("text_output", np.array([text.encode()], dtype=np.object_))])

    def speak(self, request, sender):
        tensor = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
        if tensor.ndim > 1:
            error = pb_utils.TritonError("only supports text_input being a 1D tensor")
            sender.send(pb_utils.InferenceResponse(error=error), flags=1)
            return
        prompt, streaming = tensor[0].decode(), one(request, "streaming", [False])[0]
        before = "" if one(request, "sampling_param_exclude_input_from_output", [False])[0] else prompt
        if prompt == "what":
            names = ("max_tokens", "temperature", "top_k", "seed", "stop")
            asked = {name: one(request, "sampling_param_" + name) for name in names}
            sender.send(self.answer(json.dumps(asked, default=bytes.decode)), flags=1)
            return
        texts, stops = [before], [word.decode() for word in one(request, "sampling_param_stop", [])]
        for word in prompt.split()[:one(request, "sampling_param_max_tokens")[0]]:
            texts.append(texts[-1] + word)
            if stop := next((stop for stop in stops if texts[-1].endswith(stop)), ""):
                texts[-1] = texts[-1][:-len(stop)]
                break
        for text in texts[1:-1] if streaming else ():
            sender.send(self.answer(text))
        sender.send(self.answer(texts[-1]), flags=1)
"""

_TEXT = """
input [ {{ name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }} {inputs} ]
output [ {{ name: "text_output" data_type: TYPE_STRING dims: [ -1 ] }} ]
"""
_SPEAKS = """
, { name: "max_tokens" data_type: TYPE_INT32 dims: [ 1 ] }
, { name: "temperature" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
, { name: "top_k" data_type: TYPE_INT32 dims: [ 1 ] optional: true }
, { name: "random_seed" data_type: TYPE_UINT64 dims: [ 1 ] optional: true }
, { name: "beam_width" data_type: TYPE_INT32 dims: [ 1 ] optional: true }
, { name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
, { name: "stop_words" data_type: TYPE_STRING dims: [ -1 ] optional: true }
"""

_SPEAKS_LLMAPI = """
, { name: "streaming" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
, { name: "sampling_param_max_tokens" data_type: TYPE_INT32 dims: [ 1 ] optional: true }
, { name: "sampling_param_temperature" data_type: TYPE_FP32 dims: [ 1 ] optional: true }
, { name: "sampling_param_top_k" data_type: TYPE_INT32 dims: [ 1 ] optional: true }
, { name: "sampling_param_seed" data_type: TYPE_UINT64 dims: [ 1 ] optional: true }
, { name: "sampling_param_stop" data_type: TYPE_STRING dims: [ -1 ] optional: true }
, { name: "sampling_param_exclude_input_from_output" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
, { name: "stop" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
"""


def llmapi(repository: Path, name: str, *, decoupled: bool) -> None:
    """Put a model that speaks llmapi's tensors into ``repository``."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(LLMAPI, encoding="utf-8")
    config = f'name: "{name}"\nbackend: "python"\n' + _TEXT.format(inputs=_SPEAKS_LLMAPI).replace(
        "dims: [ 1 ] }", "dims: [ -1 ] }", 1
    )
    config += f"model_transaction_policy {{ decoupled: {str(decoupled).lower()} }}\n"
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")


def lay(repository: Path, name: str, source: str, *, speaks: bool = False, decoupled: bool = False) -> None:
    """Put a model of Triton's Python backend into ``repository``; one that ``speaks`` has the inputs of a language model."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(source, encoding="utf-8")
    config = f'name: "{name}"\nbackend: "python"\nmax_batch_size: 8\n' + _TEXT.format(inputs=_SPEAKS if speaks else "")
    config += f"model_transaction_policy {{ decoupled: {str(decoupled).lower()} }}\n"
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")


def ensemble(repository: Path, name: str, member: str) -> None:
    """A one-step ensemble over a model that speaks."""
    (repository / name / "1").mkdir(parents=True)
    names = ("text_input", "max_tokens", "stream")
    maps = "".join(f'input_map {{ key: "{each}" value: "{each}" }}\n' for each in names)
    config = f'name: "{name}"\nplatform: "ensemble"\nmax_batch_size: 8\n'
    config += _TEXT.format(inputs="".join(line for line in _SPEAKS.splitlines() if any(each in line for each in names)))
    config += f'ensemble_scheduling {{ step [ {{ model_name: "{member}" model_version: -1\n{maps}'
    config += 'output_map { key: "text_output" value: "text_output" } } ] }\n'
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")
