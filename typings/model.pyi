# NVIDIA's tensorrt_llm_bls/1/model.py, as far as forge's subclass of it goes.
class Decoder:
    preproc_model_name: str
    postproc_model_name: str

class TritonPythonModel:
    decoder: Decoder
    def initialize(self, args: dict[str, str]) -> None: ...
