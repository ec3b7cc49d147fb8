# ruff: noqa: E501  (the words stand as people met them)
"""Every known failure is known by the words in which people met it, and its fix can be followed."""

import os
from pathlib import Path

import pytest

from failures_seen import SEEN as MET
from forge.check.rules import all_rules
from forge.diagnoses import DIAGNOSES, Diagnosis, diagnose, fault, named, read
from forge.plan.known_failures import Known

# As they stand in the public threads that each row names.
SEEN = [
    *MET,
    ("docker-not-allowed", "Error while fetching server API version: ('Connection aborted.', PermissionError(13, 'Permission denied'))"),
    ("docker-not-allowed", "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"),
    ("docker-not-running", "Error while fetching server API version: ('Connection aborted.', FileNotFoundError(2, 'No such file or directory'))"),
    ("docker-not-running", "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"),
    ("no-nvidia-runtime", 'Error response from daemon: could not select device driver "" with capabilities: [[gpu]].'),
    ("no-nvidia-runtime", 'could not select device driver "nvidia" with capabilities: [[gpu]]'),
    ("no-nvidia-runtime", "invoking the NVIDIA Container Runtime Hook directly (e.g. specifying the docker --gpus flag) is not supported."),
    ("driver-too-old", "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please update your driver to a newer version"),
    ("no-gpu-in-container", "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory"),
    ("shared-memory", "Unable to initialize shared memory key 'triton_python_backend_shm_region_3' to requested size (67108864 bytes). If you are running Triton inside docker, use '--shm-size' flag. Error: No space left on device"),
    ("shared-memory", "misc/shmutils.cc:128 NCCL WARN Error while creating shared memory segment /dev/shm/nccl-97p6hH (size 9637888), error: No space left on device (28)"),
    ("disk-full", 'safetensors_rust.SafetensorError: Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'),
    ("version-tag", "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: 228, Serialized Engine Version: 237"),
    ("triton-lock", "terminate called after throwing an instance of 'boost::interprocess::lock_exception'\n  what():  boost::interprocess::lock_exception"),
    ("compute-capability", "The engine plan file is generated on an incompatible device, expecting compute 9.0 got compute 8.9, please rebuild."),
    ("unsupported-gpu", "[TensorRT-LLM][ERROR] Assertion failed: Unsupported architecture (fmhaRunner.cpp:89)"),
    ("unsupported-gpu", "stream): no kernel image is available for execution on the device (samplingTopPKernels.cu:1078)"),
    ("build-scratch", "[TRT] [E] 4: Internal error: plugin node LLaMAForCausalLM/layers/0/attention/PLUGIN_V2_GPTAttention_0 requires 56405524864 bytes of scratch space, but only 47590277120 is available. Try increasing the workspace size"),
    ("kv-cache-too-small", "[TensorRT-LLM][ERROR] maxTokensInPagedKvCache must be large enough to process at least 1 sequence to completion"),
    ("kv-cache-memory", "[TensorRT-LLM][ERROR] CUDA runtime error in ::cudaMallocAsync(ptr, n, mCudaStream->get()): out of memory (tllmBuffers.h:112)"),
    ("torch-memory", "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 514.00 MiB. GPU 0 has a total capacity of 79.14 GiB"),
    ("build-memory", "[TRT] [E] 2: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory (no further information)\n[TRT] [W] Requested amount of GPU memory (24793579520 bytes) could not be allocated."),
    ("gpu-memory", "[TRT] [E] 2: [globWriter.cpp::makeResizableGpuMemory::423] Error Code 2: OutOfMemory (no further information)"),
    ("lfs-pointer", "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge"),
    ("lfs-pointer", "SafetensorError: Error while deserializing header: header too large"),
    ("remote-code", "ValueError: The repository for 'internlm-chat-7b-v1_1' contains custom code which must be executed to correctly load the model.\nPlease pass the argument `trust_remote_code=True` to allow custom code to be run."),
    ("registry-login", "Get https://nvcr.io/v2/nvidia/tensorrt/manifests/19.05-py3: unauthorized: authentication required"),
    ("registry-login", "pull access denied for nvcr.io/nvidia/x, repository does not exist or may require 'docker login': denied"),
    ("registry-login", 'Head "https://nvcr.io/v2/nvidia/x/manifests/1": no basic auth credentials'),
    ("no-such-image", "manifest for nvcr.io/nvidia/tritonserver:23.04-py not found: manifest unknown: manifest unknown"),
    ("registry-unreachable", 'Head "https://nvcr.io/v2/nvidia/tritonserver/manifests/22.12-py3": dial tcp: lookup nvcr.io: i/o timeout'),
    ("no-such-program", 'OCI runtime create failed: exec: "trtllm-build": executable file not found in $PATH: unknown'),
    ("no-such-program", "/opt/tensorrtserver/nvidia_entrypoint.sh: line 92: exec: tritonserver: not found"),
    ("no-such-program", "[FATAL tini (7)] exec trtllm-build failed: No such file or directory"),
    ("missing-mount", 'invalid mount config for type "bind": bind source path does not exist: /home/docker/data'),
    ("engine-unreadable", "[TensorRT-LLM][ERROR] Assertion failed: Failed to deserialize cuda engine (/app/tensorrt_llm/cpp/tensorrt_llm/runtime/tllmRuntime.cpp:74)"),
    ("calibration-texts", "ValueError: Config name is missing.\nPlease pick one among the available configs: ['1.0.0', '2.0.0', '3.0.0']"),
    ("calibration-texts", "    dataset = dataset[\"text\"][:calib_size]\nKeyError: 'text'"),
    ("bad-dockerfile", "dockerfile parse error line 3: unknown instruction: RUNN"),
    ("lora-type", "[TensorRT-LLM][ERROR] Assertion failed: Expected lora weights to be the same data type as base model (loraUtils.cpp:99)"),
    ("lora-cache", "[TensorRT-LLM][ERROR] Assertion failed: Not enough space allocated to device LoRA cache to hold 1 max sized LoRA 1024 < 57344"),
    ("killed", "loading weights\nKilled\n"),
]  # fmt: skip


QUOTED = tuple((rule.id, line) for rule in all_rules() for line in rule.fails.splitlines())
SILENT = ("no line says so", "nothing: ", "[TensorRT-LLM][WARNING]", "error: creating server")
"""What a rule quotes that no failure's words are."""
SAME_WORDS = {
    "whole-answers": "decoupled-pair",
    "llmapi-decoupled": "decoupled-pair",
    "engine-unseen": "engine-path",
    "instances": "kv-memory",
    "open-control-here": "open-control",
    "orchestrator": "engine-world",
    "tokenizer-files": "tokenizer-path",
    "moved": "tokenizer-path",
    "placeholder": "engine-path",
}
"""Rules whose quotes another rule's row knows: one failure, met on several ways."""


@pytest.mark.parametrize(("rule", "line"), [each for each in QUOTED if not each[1].startswith(SILENT)], ids=lambda it: it[:40])
def test_what_a_rule_quotes_is_known_in_a_log(rule: str, line: str) -> None:
    found = diagnose(f"I0101 00:00:00 1 server.cc] loading\n{line}\n")
    assert found is not None
    assert found.rule in {rule, SAME_WORDS.get(rule, rule), "batching-type", "kv-tokens"}


def test_a_row_names_a_rule_that_there_is() -> None:
    assert {row.rule for row in DIAGNOSES if row.rule} <= {rule.id for rule in all_rules()}


@pytest.mark.parametrize(("name", "text"), SEEN, ids=lambda value: value[:24])
def test_a_failure_is_known_by_the_words_people_met(name: str, text: str) -> None:
    found = diagnose(f"[12:00:00] some line before\n{text}\nTraceback (most recent call last):\n  more\n")
    assert found is not None
    assert found.name == name
    assert "{" not in found.meaning + found.fix


def test_every_row_has_words_by_which_it_is_known() -> None:
    quoted = {found.name for _, line in QUOTED if (found := diagnose(line))}
    assert {row.name for row in DIAGNOSES} - {name for name, _ in SEEN} - quoted == set()
    assert len({row.name for row in DIAGNOSES}) == len(DIAGNOSES)


def test_an_ordinary_log_means_nothing() -> None:
    assert diagnose("[TRT-LLM] [I] Total time of building Unnamed Network 0: 00:01:02\nall good, no memory trouble\n") is None


NO_GPU = (
    'W1126 18:50:07.019967 7306 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory, pinned memory pool will '
    'not be available: CUDA driver version is insufficient for CUDA runtime version"\n'
    'E1128 17:34:27.302635 30557 ensemble_scheduler.cc:1468] "unable to create stream for tiny-ensemble: CUDA driver version is '
    'insufficient for CUDA runtime version"\n'
)
"""What Triton says at every start on a machine without a GPU, and of each ensemble there."""


def test_what_triton_only_warns_of_is_no_failure() -> None:
    failed = "E1126 18:50:07.739104 7306 model_lifecycle.cc:642] \"failed to load 'a' version 1: Internal: unheard of\"\n"
    assert diagnose(NO_GPU + failed) is None
    told = diagnose(NO_GPU + failed.replace("unheard of", "CUDA driver version is insufficient for CUDA runtime version"))
    assert told is not None
    assert told.name == "driver-insufficient"


def test_the_fix_says_how_far_to_turn_the_knob() -> None:
    found = diagnose("requires 56405524864 bytes of scratch space, but only 47590277120 is available")
    assert found is not None
    assert "56.4 GB" in found.meaning
    assert "84 %" in found.fix


def test_a_strangers_table_can_stand_before_forges_own() -> None:
    theirs = Diagnosis("moe", r"expert (?P<number>\d+) overflow", "expert {number} overflows {this}", "use fewer")
    found = diagnose("expert 7 overflow", (theirs, *DIAGNOSES))
    assert found is not None
    assert str(found) == "expert 7 overflows {this}: use fewer"


def test_a_row_can_be_asked_for_by_name() -> None:
    assert named("disk-full").host


def test_every_row_can_be_used() -> None:
    assert [(row.name, what) for row in DIAGNOSES if (what := fault(row))] == []


def test_a_version_tag_of_something_else_is_not_an_engines() -> None:
    assert diagnose("Version tag does not match: the cache is of format 3, expected 4") is None


OWN = """
[[diagnosis]]
name = "our-proxy"
pattern = "proxy said (?P<code>\\\\d+)"
meaning = "our proxy answered {code}"
fix = "log in to it"
host = true
"""


def test_a_persons_own_rows_are_read_from_toml() -> None:
    (row,) = read(OWN).rows
    found = diagnose("ERROR: proxy said 407", (row, *DIAGNOSES))
    assert found is not None
    assert (str(found), found.host) == ("our proxy answered 407: log in to it", True)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("proxy said", "(proxy said", "no regular expression"),
        ("proxy said (?P<code>\\\\d+)", ".*", "in every text"),
        ("{code}", "{number}", "no group"),
        ("log in to it", "", "the fix"),
        ("host = true", "hsot = true", "hsot"),
        ("[[diagnosis]]", "[[diagnosis", "at the end of an array"),
    ],
)
def test_an_unusable_row_is_told_and_left_out(old: str, new: str, said: str) -> None:
    held = read(OWN.replace(old, new))
    assert held.rows == ()
    (problem,) = held.problems
    assert said.lower() in problem.lower()


def test_a_persons_own_rows_come_first_and_hide_no_failure(tmp_path: Path) -> None:
    said: list[str] = []
    known = Known(tmp_path / "diagnoses.toml", said.append)
    assert tuple(known)[-len(DIAGNOSES) :] == tuple(DIAGNOSES)
    (tmp_path / "diagnoses.toml").write_text(OWN)
    assert next(iter(known)).name == "our-proxy"
    (tmp_path / "diagnoses.toml").write_text("[[diagnosis")
    assert diagnose("No space left on device", known) == diagnose("No space left on device")
    assert "diagnoses.toml" in said[0]


def test_a_pipe_in_place_of_own_rows_is_not_awaited(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "diagnoses.toml")
    said: list[str] = []
    assert tuple(Known(tmp_path / "diagnoses.toml", said.append))[-len(DIAGNOSES) :] == tuple(DIAGNOSES)
    assert "a pipe stands there, not a file" in said[0]


FRAMES = """Traceback (most recent call last):
  File "/app/examples/quantization/quantize.py", line 1, in <module>
  File "/pkgs/tensorrt_llm/quantization/quantize_by_modelopt.py", line 1, in get_hf_config
    return AutoConfig.from_pretrained(ckpt_path, trust_remote_code=True)
"""


def test_the_frames_of_a_traceback_are_no_messages() -> None:
    assert diagnose(FRAMES + "ValueError: something of its own\n") is None
    assert diagnose(FRAMES.replace("  File", "[1,0]<stderr>:  File").replace("    return", "[1,0]<stderr>:    return")) is None


TACTIC = "[TRT] [E] 2: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory (no further information)\n"
SKIPPED = "[TRT] [W] Requested amount of GPU memory (24793579520 bytes) could not be allocated.\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (TACTIC + "[TRT-LLM] [I] Total time of building Unnamed Network 0: 00:02:01\nTypeError: unheard of\n", None),
        (TACTIC + SKIPPED + FRAMES + "ValueError: unheard of\n", None),
        (TACTIC + SKIPPED + FRAMES + "AssertionError: Engine building failed, please check error log.\n", "build-memory"),
        (TACTIC + FRAMES + "OSError: [Errno 28] No space left on device: /forge/out/rank0.engine\n", "disk-full"),
        (
            "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge\n\n"
            "During handling of the above exception, another exception occurred:\n\n" + FRAMES + "RuntimeError: failed\n",
            "lfs-pointer",
        ),
        (
            "ValueError: old and over\n" + FRAMES + "KeyError: 'architecture'\n[node] Primary job terminated normally\n",
            "hugging-face-folder",
        ),
        ("\x1b[31mmpirun has detected an attempt to run as root.\x1b[0m\n", "mpi-root"),
    ],
)
def test_the_last_failure_counts_and_no_older_line(text: str, name: str | None) -> None:
    found = diagnose(text)
    assert (found.name if found else None) == name
