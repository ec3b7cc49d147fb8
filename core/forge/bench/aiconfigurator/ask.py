"""Runs apart from forge, in AIConfigurator's environment: a search for each parallelism, and what it has found on the way.

    python ask.py QUESTION.json OUT.json

It imports nothing of forge, and nothing from the network: QUESTION.json has the model's config.json in it.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

COLUMNS = {
    "tp": "tp",
    "pp": "pp",
    "batch": "bs",
    "concurrency": "concurrency",
    "ttft_ms": "ttft",
    "tpot_ms": "tpot",
    "latency_ms": "request_latency",
    "requests_per_s": "seq/s",
    "tokens_per_s": "tokens/s",
    "tokens_per_s_gpu": "tokens/s/gpu",
    "tokens_per_s_user": "tokens/s/user",
    "memory_gib": "memory",
}
WHOLE = ("tp", "pp", "batch", "concurrency")


def main(question_file: str, out: str) -> None:
    """Read the question, ask AIConfigurator's cli_exp, write what forge.bench.aiconfigurator.proposals reads."""
    api: Any = importlib.import_module("aiconfigurator.cli.api")
    errors: Any = importlib.import_module("aiconfigurator_core.sdk.errors")
    question = json.loads(Path(question_file).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(question["config"]), encoding="utf-8")
        try:
            found = api.cli_exp(config={f"tp{tp}pp{pp}": _search(question, folder, tp, pp) for tp, pp in question["parallel"]})
            fronts = list(found.pareto_fronts.values())
        except errors.NoFeasibleConfigError:
            fronts = []
    rows = [_row(row) for front in fronts if front is not None for row in front.to_dict("records")]
    answer = {"version": importlib.import_module("importlib.metadata").version("aiconfigurator"), "rows": rows}
    Path(out).write_text(json.dumps(answer), encoding="utf-8")


def _search(question: Any, folder: str, tp: int, pp: int) -> dict[str, object]:
    """An experiment, as its YAML has them: one server alone, prefill and decoding together."""
    return {
        "serving_mode": "agg",
        "model_path": folder,
        "system_name": question["system"],
        "backend_name": question["backend"],
        "backend_version": question["version"],
        "total_gpus": tp * pp,
        "isl": question["input_tokens"],
        "osl": question["output_tokens"],
        "ttft": question["ttft_ms"],
        "tpot": question["tpot_ms"],
        "free_gpu_memory_fraction": question["fraction"],
        "max_seq_len": question["max_seq_len"],
        "agg_num_gpu_candidates": [tp * pp],
        "agg_tp_candidates": [tp],
        "agg_pp_candidates": [pp],
    }


def _row(row: Any) -> dict[str, float | int]:
    return {name: int(row[column]) if name in WHOLE else float(row[column]) for name, column in COLUMNS.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
