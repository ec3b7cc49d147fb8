"""NVIDIA's tensorrt_llm_bls, told its siblings' names by config.pbtxt: its own model.py has two of them as literals."""

from __future__ import annotations

import json

from model import TritonPythonModel as Nvidias


class TritonPythonModel(Nvidias):
    def initialize(self, args: dict[str, str]) -> None:
        super().initialize(args)
        parameters = json.loads(args["model_config"])["parameters"]
        self.decoder.preproc_model_name = parameters["preprocessing_model_name"]["string_value"]
        self.decoder.postproc_model_name = parameters["postprocessing_model_name"]["string_value"]
