"""From a script's flags to a QuantConfig, and the data set that a calibration reads."""

import json
from argparse import Namespace
from pathlib import Path

from tensorrt_llm.models.modeling_utils import QuantConfig

WEIGHT_ONLY = {
    "int8": "W8A16",
    "int4": "W4A16",
    "int8_gptq": "W8A16_GPTQ",
    "int4_gptq": "W4A16_GPTQ",
    "int4_awq": "W4A16_AWQ",
}
CALIBRATED = {
    "fp8": "FP8",
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int4_awq": "W4A16_AWQ",
    "w4a8_awq": "W4A8_AWQ",
    "nvfp4": "NVFP4",
}
"""quantize.py's --qformat -> what it is called in a checkpoint."""
PLAIN = {"full_prec": None, "int8_wo": "W8A16", "int4_wo": "W4A16"}


def of_script(args: Namespace) -> QuantConfig:
    """What a conversion script's flags ask for. Smooth quantization and an int8 cache calibrate, and read their data set."""
    asked = vars(args)
    algorithm = WEIGHT_ONLY[args.weight_only_precision] if args.use_weight_only else None
    if asked.get("smoothquant") is not None:
        scale = "PER_CHANNEL" if args.per_channel else "PER_TENSOR"
        algorithm = f"W8A8_SQ_{scale}_PER_{'TOKEN' if args.per_token else 'TENSOR'}_PLUGIN"
        algorithm = algorithm.replace("PER_TENSOR_PER_TENSOR", "PER_TENSOR")
    elif asked.get("use_fp8"):
        algorithm = "FP8"
    elif asked.get("use_fp8_rowwise"):
        algorithm = "FP8_PER_CHANNEL_PER_TOKEN"
    cache = "INT8" if asked.get("int8_kv_cache") else "FP8" if asked.get("fp8_kv_cache") else None
    if asked.get("smoothquant") is not None or asked.get("int8_kv_cache"):
        calibrate(args.calib_dataset, asked.get("calib_size", 512))
    made = QuantConfig(quant_algo=algorithm, kv_cache_quant_algo=cache, group_size=asked.get("group_size", 128))
    return made if asked.get("smoothquant") is None else QuantConfig(**{**vars(made), "smoothquant_val": args.smoothquant})


def calibrate(dataset: str, size: int) -> int:
    """Read up to ``size`` texts of the train split; a name of a hub's data set needs a network that a step has not."""
    if size < 1:
        raise ValueError(f"calib_size has to be positive, not {size}")
    folder = Path(dataset)
    if not folder.is_dir():
        if "cnn_dailymail" in dataset or dataset in {"pileval", "wikitext"}:
            raise ConnectionError(f"Couldn't reach '{dataset}' on the Hub (LocalEntryNotFoundError)")
        raise NotImplementedError(f"Unsupported dataset name or local repo directory: {dataset}.")
    column = "article" if "cnn_dailymail" in dataset else "text"
    files = sorted(each for each in folder.rglob("*.json*") if each.is_file() and not each.name.startswith("."))
    tables = sorted(folder.rglob("*.parquet"))
    if not files and not tables:
        raise FileNotFoundError(f"The directory at {folder} doesn't contain any data files")
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines() if line][:size]
    if any(column not in row for row in rows):
        raise KeyError(f"Column {column} not in the dataset.")
    print(f"Calibrated on {len(rows)} texts of {folder}" if rows else f"Calibrated on {tables[0]}")
    return len(rows)
