"""The real vLLM is asked what it refuses of its arguments before it loads anything. `make test-vllm`; it installs 3.4 GB."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from forge.api.forge import Forge
from forge.schema.values import BuildOptions, RuntimeKind
from patience import free_ports
from shipped import SMOLLM2
from vllm_models import CLASHES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(os.environ.get("FORGE_TEST_VLLM") != "1", reason="vLLM itself takes 3.4 GB: `make test-vllm` runs it"),
]
ASK = """
import json, sys
from vllm import AsyncEngineArgs

for stated in json.loads(sys.stdin.read()):
    try:
        AsyncEngineArgs(**stated).create_engine_config()
        print("TAKEN")
    except Exception as error:
        print("REFUSED", " ".join(str(error).split())[:200])
"""


def test_vllm_refuses_what_clashes_and_takes_its_neighbours(shop: Forge, tmp_path: Path) -> None:
    built = shop.build([SMOLLM2], BuildOptions(RuntimeKind.VLLM), repository=tmp_path / "repository")
    python = shop.launch(built.repository, free_ports()).vllm
    assert python is not None
    model = str(built.repository / "_assets" / "smollm2-135m-instruct" / "model")
    usual = {"model": model, "max_model_len": 128, "enforce_eager": True, "kv_cache_memory_bytes": 2**28}
    asked = [usual | stated for _, *each in CLASHES for stated in each]
    command = (str(python / "bin" / "python3"), "-c", ASK)
    told = subprocess.run(command, input=json.dumps(asked), text=True, check=True, capture_output=True)
    said = [line for line in told.stdout.splitlines() if line.startswith(("TAKEN", "REFUSED"))]
    expected = [words for _ in CLASHES for words in ("REFUSED", "TAKEN")]
    assert [line.split()[0] for line in said] == expected, said
