"""What TensorRT-LLM's Triton backend refuses when it loads a model, from what config.pbtxt, the environment and MPI say.

Facts of model_instance_state.cc and model_state.cc (0.13 to 1.0; guided decoding and lookahead's sizes are new in 0.19), and of
executorConfig.cpp, kvCacheConfig.cpp, decodingConfig.cpp and executorImpl.cpp behind them. Most of what is wrong with a
parameter counts as unset there, aloud: an unknown decoding_mode or batch_scheduler_policy, choices for Medusa or Eagle that are
none, a path of an encoder that is not there, and worker_path, whose exception is caught where it is thrown. Several engines
in one server are not refused either: each is held to the ranks that MPI has started.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from tensorrt_llm.version import __version__

MODES = ("top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle")
POLICIES = ("max_utilization", "guaranteed_no_evict")
WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
"""What is started for each rank in orchestrator mode, where executor_worker_path does not name another."""
_TYPES = {"V1": "static", "v1": "static", "inflight_batching": "inflight", "inflight_fused_batching": "inflight"}
_GUIDED = ("tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend")
_GUIDING = (0, 19)
"""The first that reads the parameters of guided decoding and the sizes of lookahead."""
_SIZES = ("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size")
_ANSWERS = {**dict.fromkeys(("True", "true", "TRUE", "1"), True), **dict.fromkeys(("False", "false", "FALSE", "0"), False)}
_WHOLE, _REAL = re.compile(r"\s*[+-]?\d+"), re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
Read = TypeVar("Read")
Say = Callable[[str], None]


class RefusedError(ValueError):
    """A model that is not loaded."""


@dataclass(frozen=True)
class Place:
    """Where a model is loaded: the server's environment, and how many processes MPI has started."""

    orchestrated: bool = False
    spawns: bool = True
    ranks: int = 1

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Place":
        """As the backend and Open MPI read it."""
        spawns = environ.get("TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES")
        return cls(
            _count(environ.get("TRTLLM_ORCHESTRATOR", "0")) != 0,
            spawns is None or _count(spawns) != 0,
            max(_count(environ.get("OMPI_COMM_WORLD_SIZE", "1")), 1),
        )


@dataclass(frozen=True)
class Terms:
    """What an engine is opened with; None is what nobody stated."""

    batching: str
    engine: Path | None
    encoder: Path | None
    beams: int
    reuse: bool
    mode: str
    cache_tokens: int | None
    cross: float | None
    participants: tuple[int, ...] | None
    devices: tuple[int, ...] | None
    worker: str


class Parameters:
    """The parameters of a config.pbtxt, read as C++ reads them; what cannot be read is told, and unset."""

    def __init__(self, stated: Mapping[str, str], say: Say) -> None:
        self._stated = stated
        self._say = say

    def text(self, name: str) -> str:
        """A parameter that has to be there, be it empty."""
        if name not in self._stated:
            raise RefusedError(f"Cannot find parameter with name: {name}")
        return self._stated[name]

    def soft(self, name: str, read: Callable[[str], Read]) -> Read | None:
        """A parameter that need not be there."""
        try:
            return read(self.text(name))
        except (ValueError, KeyError):
            self._say(f"{name} is not specified, will use default value")
            return None


def terms(stated: Mapping[str, str], place: Place, say: Say = print) -> Terms:
    """What a config asks for; RefusedError where the backend does not go on."""
    guides = _numbered(__version__) >= _GUIDING
    read = Parameters(stated, say)
    batching = _TYPES.get(read.text("gpt_model_type"))
    if batching is None:
        raise RefusedError("Invalid gpt_model_type. Must be v1/inflight_batching/inflight_fused_batching.")
    beams = read.soft("max_beam_width", whole)
    cache_tokens, cross = _cache(read)
    read.soft("batch_scheduler_policy", POLICIES.index)
    participants = _participants(read, place)
    mode = read.soft("decoding_mode", lambda text: MODES[MODES.index(text)]) or ""
    if mode == "lookahead" and guides:
        _lookahead(read)
    if guides:
        _guided(read)
    _require(beams is None or beams > 0, "mMaxBeamWidth > 0")
    engine, encoder = (read.soft(f"{each}_model_path", _there) for each in ("gpt", "encoder"))
    _require(engine is not None or encoder is not None, "Both encoder and decoder model paths are empty")
    return Terms(
        batching=batching,
        engine=engine,
        encoder=encoder,
        beams=beams or 1,
        reuse=read.soft("enable_kv_cache_reuse", _ANSWERS.__getitem__) is not False,
        mode=mode,
        cache_tokens=cache_tokens,
        cross=cross,
        participants=participants,
        devices=read.soft("gpu_device_ids", _numbers),
        worker=read.soft("executor_worker_path", str) or WORKER,
    )


def require_ranks(asked: Terms, place: Place, ranks: int) -> None:
    """RefusedError where the engine's ``ranks`` (tp x pp x cp) are not those that MPI has, or can start."""
    there = asked.participants
    if place.orchestrated and place.spawns:
        one = "When using the orchestrator mode and isOrchestrator is true, expect MPI worldSize to be 1."
        _require(place.ranks == 1, one)
        if not Path(asked.worker).is_file():
            raise RefusedError(f"MPI_Comm_spawn: mpirun was unable to find the specified executable file {asked.worker}")
        both = "Participant ids should not be set when using CommunicationMode::kORCHESTRATOR with spawnProcesses=true"
        _require(there is None, both)
    elif there is None:
        leads = "With communicationMode kLEADER, MPI worldSize is expected to be equal to tp*pp*cp"
        _require(place.ranks == ranks, f"{leads} when participantIds are not specified")
    else:
        size = f"When specifying participantIds, participantIds size ({len(there)}) must be equal to tp*pp*cp"
        _require(len(there) == ranks, size)
        _require(not place.orchestrated or 0 not in there, "Rank 0 is reserved for the orchestrator")
        _require(there[0] < place.ranks, "Not enough ranks in world")
    devices = asked.devices
    _require(devices is None or len(devices) == ranks, "When specifying deviceIds, deviceIds size must be equal to tp*pp*cp")


def whole(text: str) -> int:
    """std::stoi: what follows the digits is nobody's business."""
    if not (found := _WHOLE.match(text)):
        raise ValueError("stoi")
    return int(found[0])


def _real(text: str) -> float:
    """std::stof."""
    if not (found := _REAL.match(text)):
        raise ValueError("stof")
    return float(found[0])


def _count(text: str) -> int:
    """std::atoi: no number is zero."""
    found = _WHOLE.match(text)
    return int(found[0]) if found else 0


def _numbered(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _numbers(text: str) -> tuple[int, ...]:
    """The first instance's list: lists of several instances are parted by semicolons."""
    return tuple(whole(each) for each in text.partition(";")[0].split(","))


def _there(text: str) -> Path:
    if not Path(text).exists():
        raise RefusedError(f"Model path at {text} does not exist.")
    return Path(text)


def _require(true: bool, what: str) -> None:
    if not true:
        raise RefusedError(f"[TensorRT-LLM][ERROR] Assertion failed: {what}")


def _cache(read: Parameters) -> tuple[int | None, float | None]:
    """What KvCacheConfig takes, of all that the cache is told."""
    tokens = read.soft("max_tokens_in_paged_kv_cache", whole)
    _require(tokens is None or tokens > 0, "maxTokens > 0")
    windows = read.soft("max_attention_window_size", _numbers)
    _require(windows is None or min(windows) > 0, "maxAttentionWindow > 0")
    sink = read.soft("sink_token_length", whole)
    _require(sink is None or sink > 0, "sinkTokenLength > 0")
    free, cross = (read.soft(name, _real) for name in ("kv_cache_free_gpu_mem_fraction", "cross_kv_cache_fraction"))
    for name, share in (("freeGpuMemoryFraction", free), ("crossKvCacheFraction", cross)):
        _require(share is None or share > 0, f"{name} > 0.F")
        _require(share is None or share < 1, f"{name} < 1.F")
    return tokens, cross


def _participants(read: Parameters, place: Place) -> tuple[int, ...] | None:
    there = read.soft("participant_ids", _numbers)
    none = "Spawning of processes was disabled in orchestrator mode, but participant IDs is missing."
    _require(there is not None or place.spawns or not place.orchestrated, none)
    return there


def _lookahead(read: Parameters) -> None:
    try:
        window, ngram, verification = (whole(read.text(name)) for name in _SIZES)
    except ValueError:
        window, ngram, verification = 0, 0, 0
    alone = ngram != 1 or (window == 1 and verification == 0)
    _require(
        min(window, ngram) >= 1 and verification >= 0 and alone,
        "Decoding mode is set to lookahead but lookahead parameters are not specified. "
        f"Please set parameters {_SIZES[0]}, {_SIZES[1]}, and {_SIZES[2]}.",
    )


def _guided(read: Parameters) -> None:
    """All three have to be there; two of them filled ask for guided decoding."""
    _, path, backend = (read.text(name) for name in _GUIDED)
    if path in ("", f"${{{_GUIDED[1]}}}") or backend in ("", f"${{{_GUIDED[2]}}}"):
        return
    _require(Path(path).exists(), f"Xgrammar's tokenizer info path at {path} does not exist.")
    try:
        told = cast("dict[str, object]", json.loads(Path(path).read_text(encoding="utf-8")))
        whole_file = all(key in told for key in ("encoded_vocab", "tokenizer_str", "stop_token_ids"))
    except (ValueError, TypeError):
        whole_file = False
    if not whole_file:
        raise RefusedError(f"[json.exception.type_error] {path} holds no encoded_vocab, tokenizer_str and stop_token_ids")
    only = "Guided decoding is currently supported with 'xgrammar' backend. Invalid guided_decoding_backend parameter provided."
    _require(backend == "xgrammar", only)
