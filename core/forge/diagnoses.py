"""What known failures mean and how they are mended: a table over the text of a log. Pure.

Each row was read in a public issue (``seen``). The first row whose pattern is in the text wins, so what explains more stands
above what is merely true. A mend may name the pattern's groups; ``needed`` and ``there`` are bytes, ``share`` what is there in
percent of what is needed. docs/diagnoses.md lists the rows; a person's own stand in ``diagnoses.toml`` (``read``), and plugins
bring theirs (the hook ``forge_diagnoses``).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

NAME = "diagnoses.toml"
"""The file of a person's own rows, in forge's home folder."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A failure that is known: ``pattern`` (a regular expression, case ignored), what it means, the mend, where it was seen.

    ``host`` says that this machine is to be mended, not the recipe.
    """

    name: str
    pattern: str
    meaning: str
    mend: str
    seen: str = ""
    host: bool = False

    def __str__(self) -> str:
        return f"{self.meaning}: {self.mend}"


_LESS = (
    "lower [build] max_num_tokens (2048 is enough for most) or halve max_batch_size; then shorten max_input_len and "
    "max_seq_len; then quantize ([convert] quantization) or split over GPUs ([convert] tp)"
)
_ISSUES = "https://github.com/{}/issues/{}".format
_TRTLLM, _BACKEND, _TRITON = (
    "NVIDIA/TensorRT-LLM",
    "triton-inference-server/tensorrtllm_backend",
    "triton-inference-server/server",
)

DIAGNOSES: tuple[Diagnosis, ...] = (
    Diagnosis(
        "docker-not-allowed",
        r"permission denied.{0,80}docker|docker.{0,200}PermissionError|fetching server API version.*Permission denied",
        "Docker runs, and this user may not use it",
        "add the user to the group docker (`sudo usermod -aG docker $USER`) and log in again",
        _ISSUES("docker/docker-py", 2717),
        host=True,
    ),
    Diagnosis(
        "docker-not-running",
        r"Cannot connect to the Docker daemon|Is the docker daemon running|Error while fetching server API version",
        "no Docker daemon answers",
        "install Docker or start it (`sudo systemctl start docker`); DOCKER_HOST names one that listens elsewhere",
        _ISSUES("docker/docker-py", 3219),
        host=True,
    ),
    Diagnosis(
        "no-nvidia-runtime",
        r'could not select device driver "[^"]*" with capabilities: \[\[gpu\]\]|unknown or invalid runtime name: nvidia'
        r"|invoking the NVIDIA Container Runtime Hook directly",
        "Docker cannot give GPUs to containers",
        "install nvidia-container-toolkit, run `sudo nvidia-ctk runtime configure --runtime=docker`, restart Docker",
        _ISSUES("NVIDIA/nvidia-docker", 1034),
        host=True,
    ),
    Diagnosis(
        "driver-too-old",
        r"unsatisfied condition: (?P<wanted>\w+ ?>= ?[\d.]+)",
        "the NVIDIA driver is older than the image's CUDA ({wanted})",
        "update the driver, or name an image of that driver's CUDA in [runtime] image",
        _ISSUES("MauriceNino/dashdot", 1226),
        host=True,
    ),
    Diagnosis(
        "no-gpu-in-container",
        r"lib(cuda|nvidia-ml)\.so\.1: cannot open shared object file|nvidia-container-cli: .*(no such device|driver not loaded)"
        r"|no CUDA-capable device is detected|Found no NVIDIA driver on your system",
        "the program needs a GPU and its driver, and the container has none",
        "run this step on a machine with an NVIDIA GPU and its driver; `forge doctor` says what is missing",
        _ISSUES("huggingface/text-generation-inference", 2070),
        host=True,
    ),
    Diagnosis(
        "shared-memory",
        r"Unable to initialize shared memory key|Failed to increase the shared memory pool size"
        r"|Error while creating shared memory segment|/dev/shm/nccl-\w+ to \d+ bytes|DataLoader worker .* bus error",
        "the container's shared memory (/dev/shm) is full",
        "forge gives 2 GB; started by hand, a container needs --shm-size=2g and 64 MB more for each Python model instance",
        _ISSUES(_TRITON, 6195),
        host=True,
    ),
    Diagnosis(
        "disk-full",
        r"No space left on device|\[Errno 28\]|Disk quota exceeded|PytorchStreamWriter failed writing file",
        "the disk is full",
        "free space where the named file is: `forge cache gc` and `docker system prune` make room",
        _ISSUES("hiyouga/LlamaFactory", 5155),
        host=True,
    ),
    Diagnosis(
        "version-tag",
        # TensorRT's whole sentence, as TensorRT-LLM logs it; other things have version tags, too.
        r"Serialization assertion \w+ == \w+ failed\.\s*"
        r"Version tag does not match\. Note: Current Version: (?P<runs>\d+), Serialized Engine Version: (?P<built>\d+)",
        "the engine was built by another TensorRT ({built}) than the one that loads it ({runs})",
        "build and serve with one image: drop the engine and build again with the [runtime] image that serves",
        _ISSUES(_BACKEND, 531),
    ),
    Diagnosis(
        "compute-capability",
        r"incompatible device, expecting compute (?P<here>[\d.]+) got compute (?P<built>[\d.]+)",
        "the engine was built for a GPU of compute capability {built} and this one has {here}",
        "build it again on the GPU that serves it",
        _ISSUES(_TRTLLM, 3031),
    ),
    Diagnosis(
        "engine-unreadable",
        r"Failed to deserialize cuda engine|Engine deserialization failed",
        "the engine cannot be read: another TensorRT-LLM built it, or its file is not whole",
        "build and serve with one image: `forge cache verify`, then build again with the [runtime] image that serves",
        _ISSUES(_BACKEND, 235),
    ),
    Diagnosis(
        "unsupported-gpu",
        r"Unsupported Arch(itecture)?\b|no kernel image is available for execution on the device|Unsupported SM\b",
        "this GPU's architecture is not one that the image's TensorRT-LLM was compiled for",
        "use a GPU of compute capability 8.0 or newer, or a [runtime] image that knows this GPU",
        _ISSUES(_TRTLLM, 1515),
    ),
    Diagnosis(
        "build-scratch",
        r"requires (?P<needed>\d+) bytes of scratch space, but only (?P<there>\d+) is available",
        "the build needs {needed} of GPU memory for one layer and {there} are free",
        "bring [build] max_batch_size times max_input_len (or max_num_tokens, where set) to {share} % of what it is or less; "
        "or stop what else uses the GPU",
        _ISSUES(_TRTLLM, 352),
    ),
    Diagnosis(
        "kv-cache-too-small",
        r"maxTokensInPagedKvCache must be large enough|max_?tokens_?in_?paged_?kv_?cache.*(too small|must be)"
        r"|No available memory for the (KV )?cache",
        "the memory left for the KV cache does not hold one sequence",
        "raise [serve] kv_cache_free_gpu_mem_fraction (0.9 where the model is alone on the GPU) or build with a shorter "
        "[build] max_seq_len and fewer max_beam_width",
        _ISSUES(_TRTLLM, 542),
    ),
    Diagnosis(
        "kv-cache-memory",
        r"CUDA runtime error in ::cudaMalloc\w*\(.*out of memory|Failed to allocate .*kv.?cache"
        r"|(kv|paged).{0,40}cache.{0,200}out of memory",
        "the GPU's memory ran out while the engine was loaded and its KV cache allocated",
        "lower [serve] kv_cache_free_gpu_mem_fraction (it is a share of what is free at load time; models on one GPU compete), "
        "or build with a smaller [build] max_batch_size and max_num_tokens",
        _ISSUES(_BACKEND, 281),
    ),
    Diagnosis(
        "torch-memory",
        r"CUDA out of memory\. Tried to allocate (?P<tried>[\d.]+ [KMG]iB)",
        "the GPU's memory ran out in PyTorch, converting or calibrating ({tried} more were asked for)",
        "stop what else uses the GPU; convert on the CPU ([convert] args: load_model_on_cpu = true, where the script has it); "
        "calibrate with a smaller batch (batch_size = 1) or shorter samples (calib_max_seq_length); or use more GPUs "
        "([convert] tp)",
        _ISSUES(_TRTLLM, 1783),
    ),
    Diagnosis(
        "build-memory",
        r"Requested amount of GPU memory \((?P<needed>\d+) bytes\) could not be allocated",
        "the build asked for {needed} of GPU memory and did not get them",
        _LESS,
        _ISSUES(_TRTLLM, 346),
    ),
    Diagnosis(
        "gpu-memory",
        r"Error Code 2: OutOfMemory|skipping tactic .* due to insufficient memory|cudaErrorMemoryAllocation"
        r"|CUDA(_ERROR_OUT_OF_MEMORY| error: out of memory)",
        "the GPU's memory ran out",
        _LESS,
        _ISSUES(_TRTLLM, 2451),
    ),
    Diagnosis(
        "lfs-pointer",
        r"Error while deserializing header: (HeaderTooLarge|header too large)|version https://git-lfs\.github\.com/spec/v1"
        r"|invalid load key, 'v'",
        "a file of weights is a git-lfs pointer, not the weights",
        "fetch them (`git lfs pull` in the checkpoint's folder), or name the model by [source] hub",
        _ISSUES("deepseek-ai/DeepSeek-V3", 557),
    ),
    Diagnosis(
        "calibration-texts",
        r"KeyError: ['\"]text['\"]|Column '?text'? (not in the dataset|doesn't exist)|Unknown split ['\"]train"
        r"|Config name is missing|Unsupported dataset name or local repo directory"
        r"|Couldn't find any data file at /forge/calibration",
        "the texts to calibrate with are not as NVIDIA's quantize.py reads them",
        "name a data set with a `train` split and a column `text` in [convert.calibration], such as NeelNanda/pile-10k; "
        "or put your texts into a folder as .jsonl, an object with the key `text` on each line, and name it by `path`",
        _ISSUES(_TRTLLM, 5247),
    ),
    Diagnosis(
        "remote-code",
        r"trust_remote_code|requires you to execute (the configuration file|custom code)",
        "the checkpoint brings Python code of its own, and the script runs none unasked",
        "read that code; then [convert] args: trust_remote_code = true, if the script has that flag",
        _ISSUES("InternLM/lagent", 49),
    ),
    Diagnosis(
        "registry-login",
        r"pull access denied|unauthorized: authentication required|requested access to the resource is denied"
        r"|failed to fetch (anonymous|oauth) token|no basic auth credentials",
        "the registry does not give this image to everyone, or has no such image",
        "check its name; then `docker login nvcr.io` (user $oauthtoken, password: an NGC API key)",
        _ISSUES("NVIDIA-NeMo/Speech", 243),
        host=True,
    ),
    Diagnosis(
        "no-such-image",
        r"manifest (for \S+ )?(not found|unknown)|No such image",
        "there is no image of that name",
        "correct [runtime] image; `forge doctor` lists the tags that forge knows",
        _ISSUES(_TRITON, 5747),
    ),
    Diagnosis(
        "registry-unreachable",
        r"(dial tcp|lookup \S+).*(i/o timeout|no such host|connection refused)|Client\.Timeout exceeded|TLS handshake timeout",
        "the registry is out of reach",
        "check the network and the daemon's proxy; an image that is held is used without a network",
        _ISSUES(_TRITON, 7356),
        host=True,
    ),
    Diagnosis(
        "no-such-program",
        r"executable file not found in \$PATH|exec: [^\n:]+: (stat .*: no such file or directory|permission denied|not found)"
        r"|tini.* exec \S+ failed",
        "the image has no such program",
        "name an image that has it in [runtime] image; if a plugin made the command, report the plugin",
        _ISSUES(_TRITON, 3161),
    ),
    Diagnosis(
        "missing-mount",
        r"bind source path does not exist|invalid mount config",
        "an input is not where it was, or the daemon does not see this machine's disk",
        "use a Docker daemon on this machine (DOCKER_HOST), and build again: what is missing is made again",
        _ISSUES("docker/docs", 4709),
    ),
    Diagnosis(
        "bad-dockerfile",
        r"dockerfile parse error|unknown instruction|Dockerfile parse error",
        "the Dockerfile is not one",
        "`forge dockerfile RECIPE` prints it; mend the file in Dockerfiles/ that it comes from",
    ),
    Diagnosis(
        "killed",
        r"^Killed$|signal 9 \(Killed\)|exit(ed with|status:?) (code )?-9\b"
        r"|killed \(exit code 137\)|the memory it may use.* ran out",
        "a process was killed, most likely because the machine's memory (not the GPU's) ran out",
        "close other programs or add memory; convert with fewer workers ([convert] args: workers = 1)",
        _ISSUES(_TRTLLM, 102),
        host=True,
    ),
)


def diagnose(text: str, table: Iterable[Diagnosis] = DIAGNOSES) -> Diagnosis | None:
    """The first row of ``table`` that knows ``text``, its sentences filled from what was found; None where none does."""
    for row in table:
        if match := re.search(row.pattern, text, re.IGNORECASE | re.MULTILINE):
            words = _words(match)
            return Diagnosis(row.name, row.pattern, _fill(row.meaning, words), _fill(row.mend, words), row.seen, host=row.host)
    return None


@dataclass(frozen=True, slots=True)
class Own:
    """A person's own rows, and what is wrong with the others of their file."""

    rows: tuple[Diagnosis, ...] = ()
    problems: tuple[str, ...] = ()


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    pattern: str
    meaning: str
    mend: str
    seen: str = ""
    host: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True):
    diagnosis: tuple[_Row, ...] = ()


def read(text: str) -> Own:
    """The tables [[diagnosis]] of a TOML text, each with a row's words. What cannot be used is told and left out."""
    try:
        stated = [Diagnosis(**msgspec.structs.asdict(row)) for row in msgspec.toml.decode(text, type=_File).diagnosis]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Own(problems=(str(error),))
    wrong = {row.name: problem for row in stated if (problem := fault(row))}
    return Own(tuple(row for row in stated if row.name not in wrong), tuple(f"{name}: {what}" for name, what in wrong.items()))


def fault(row: Diagnosis) -> str:
    """What makes a row useless; empty for a good one."""
    try:
        found = re.compile(row.pattern, re.IGNORECASE | re.MULTILINE)
    except re.error as error:
        return f"{row.pattern!r} is no regular expression: {error}"
    if found.search(""):
        return f"{row.pattern!r} is found in every text"
    if not (row.name and row.meaning and row.mend):
        return "a row says its name, what the failure means and the mend"
    known = {*found.groupindex, "share"}
    strange = [word for word in re.findall(r"\{(\w+)\}", row.meaning + row.mend) if word not in known]
    return f"{{{strange[0]}}} is no group of its pattern" if strange else ""


def named(name: str) -> Diagnosis:
    """A row of forge's own table."""
    return next(row for row in DIAGNOSES if row.name == name)


def _words(match: re.Match[str]) -> dict[str, str]:
    found = {name: value for name, value in match.groupdict().items() if value is not None}
    words = {name: f"{int(value) / 1e9:.1f} GB" if name in {"needed", "there"} else value for name, value in found.items()}
    if "needed" in found and "there" in found:
        words["share"] = str(100 * int(found["there"]) // max(1, int(found["needed"])))
    return words


def _fill(sentence: str, words: dict[str, str]) -> str:
    """Only known names are filled: a stranger's row may hold braces that mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda match: words.get(match[1], match[0]), sentence)
