"""A container engine in miniature: one image, whose programs are Python functions, on real folders."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forge.errors import HostError, Problem, StepError
from forge.machine.containers import HOME, ContainerRun, DaemonFacts, FamilyImage, ImageBuild, ImageFacts, Line, Progress
from forge.repository import config
from forge.trtllm import toolchain
from forge.trtllm.commands import OUT
from standin.skeletons import skeletons

HELP = """usage: PROGRAM [-h] [--output_dir OUTPUT_DIR]

options:
  -h, --help
  --model_dir MODEL_DIR
  --output_dir OUTPUT_DIR
  --checkpoint_dir CHECKPOINT_DIR
  --dtype {auto,float16,bfloat16,float32}
  --tp_size TP_SIZE
  --pp_size PP_SIZE
  --workers WORKERS
  --max_batch_size N
  --max_input_len N
  --max_seq_len N
  --max_beam_width N
  --max_num_tokens N
  --ckpt-type {jax,keras,torch,hf}
  --model-dir MODEL_DIR, --model_dir MODEL_DIR
  --output-model-dir OUTPUT_DIR
  --world-size N
  --gemm_plugin {auto,disable}
  --use_paged_context_fmha {enable,disable}
  --kv_cache_type {paged,disabled}
  --qformat {full_prec,fp8,int8_sq,int4_awq,w4a8_awq}
  --kv_cache_dtype {int8,fp8}
  --calib_dataset DATASET
  --calib_size N
  --max_draft_len N
  --speculative_decoding_mode {draft_tokens_external,medusa,eagle,lookahead_decoding}
  --lora_plugin {auto,float16,disable}
  --lora_target_modules {attn_qkv,attn_q,attn_k,attn_v,mlp_gate} [{attn_qkv,attn_q,attn_k,attn_v,mlp_gate} ...]
  --max_lora_rank N
"""

LLMAPI = {
    "config.pbtxt": """# a licence
name: "tensorrt_llm"
backend: "python"
# max_batch_size: 64
# model_transaction_policy { decoupled: False }
instance_group [ { count: 1 kind: KIND_CPU } ]
input [
  { name: "text_input" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "streaming" data_type: TYPE_BOOL dims: [ 1 ] optional: true },
  { name: "sampling_param_max_tokens" data_type: TYPE_INT32 dims: [ 1 ] optional: true },
  { name: "sampling_param_temperature" data_type: TYPE_FP32 dims: [ 1 ] optional: true },
  # { name: "sampling_param_min_tokens" data_type: TYPE_INT32 dims: [ 1 ] optional: true },
  { name: "sampling_param_stop" data_type: TYPE_STRING dims: [ -1 ] optional: true }
]
output [ { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] } ]
""",
    "1/model.py": "import helpers\n",
    "1/helpers.py": "# what model.py imports\n",
    "1/model.yaml": "model: TinyLlama/TinyLlama-1.1B-Chat-v1.0\n",
}
"""The llmapi model of an image, in miniature and in NVIDIA's manner."""


@dataclass
class FakeContainers:
    """``problems`` is what keeps it from working; ``scripts`` are files of the image; ``ran`` is what was run.
    ``trtllm`` and ``vllm`` are what its Python says of them, empty where it has none; ``vllm_serves`` is what is read of vLLM.

    The image holds skeletons for engines unless ``engine_path`` is false, which take ``adapters``, and an llmapi model unless
    ``llmapi`` is empty.
    """

    problems: tuple[Problem, ...] = ()
    identity: str = "sha256:" + "a" * 64
    here: bool = True
    trtllm: str = "0.21.0"
    vllm: str = ""
    vllm_serves: dict[str, object] = field(default_factory=dict[str, object])
    engine_path: bool = True
    adapters: bool = True
    llmapi: dict[str, str] = field(default_factory=lambda: dict(LLMAPI))
    scripts: dict[str, str] = field(default_factory=dict[str, str])
    ran: list[ContainerRun] = field(default_factory=list[ContainerRun])
    built: list[ImageBuild] = field(default_factory=list[ImageBuild])
    pulled: int = 0
    away: bool = False
    overlaid: dict[str, str] = field(default_factory=dict[str, str])
    loaded: list[str] = field(default_factory=list[str])

    def check(self, gpus: bool = False) -> tuple[Problem, ...]:
        return self.problems if gpus else ()

    def facts(self) -> DaemonFacts:
        return DaemonFacts("fake", "fake", 0, 0, nvidia=False, rootless=False)

    def inspect(self, reference: str) -> ImageFacts | None:
        return ImageFacts(reference, "sha256:1", self.identity, reference, size=7) if self.here else None

    def hold(self, reference: str, progress: Progress) -> ImageFacts:
        if not self.here:
            self.pulled += 1
            progress(1, 1)
        self.here = True
        return ImageFacts(reference, "sha256:1", self.identity, reference, size=7)

    def build(self, build: ImageBuild, line: Line) -> str:
        if all(build.key != other.key for other in self.built):
            self.built.append(build)
            line("built")
        return f"sha256:{build.key[:8]}"

    def made(self, home: str) -> tuple[FamilyImage, ...]:
        if self.away:
            raise HostError("no daemon answers")
        return tuple(FamilyImage(f"forge/{one.family}:{one.key}", one.key) for one in self.built if one.labels[HOME] == home)

    def discard(self, image: FamilyImage) -> bool:
        self.built = [one for one in self.built if one.key != image.key]
        return True

    def run(self, run: ContainerRun, line: Line) -> None:
        self.ran.append(run)
        self.overlaid |= {path: file.read_text() for path, file in run.overlays.items()}
        argv = run.command.argv
        line(argv[0])
        if "-c" in argv:
            (run.out / "vllm.json").write_text(json.dumps(self.vllm_serves))
            return
        missing = [word for word in argv if word.startswith("/forge/") and not self._stands(word, run)]
        if missing:
            raise StepError(f"{argv[0]}: no such folder: {missing}")
        part = next((word.removeprefix(f"{OUT}/") for word in argv if word.startswith(f"{OUT}/")), "")
        place = run.out / part  # of two engines, the one that this command makes
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text(json.dumps({"made_by": argv}))
        for rank in range(8 if argv[0] != "trtllm-build" else 1):
            (place / f"rank{rank}.{'engine' if argv[0] == 'trtllm-build' else 'safetensors'}").write_text("x")

    def _stands(self, word: str, run: ContainerRun) -> bool:
        name = word.split("/")[2]
        return name == "out" or (name in run.inputs and run.inputs[name].is_dir())

    def read(self, image: str, paths: tuple[str, ...]) -> Mapping[str, bytes]:
        if not self.here:
            raise HostError("no such image", where=image)
        shipped = (skeletons() if self.adapters else config.skeletons()) if self.engine_path else ()
        files = {f"{toolchain.SKELETONS}/{text.path}": text.content for text in shipped} | self.scripts
        files |= {f"{toolchain.LLMAPI}/{path}": content for path, content in self.llmapi.items()}
        wanted = tuple(path for path in files if any(path == one or path.startswith(f"{one}/") for one in paths))
        return {path: files[path].encode() for path in wanted}

    def help_text(self, image: str, argv: tuple[str, ...], gpus: str = "") -> str:
        if "-c" in argv:
            version = self.vllm if "'vllm'" in argv[-1] else self.trtllm
            if not version or argv[0] != "python3":
                raise StepError("PackageNotFoundError: No package metadata was found")
            return f"{version}\n"
        return HELP.replace("PROGRAM", argv[-2])

    def save(self, references: Sequence[str]) -> Iterator[bytes]:
        for reference in references:
            yield f"{reference}\n".encode()

    def load(self, stream: Iterable[bytes]) -> tuple[str, ...]:
        self.loaded = b"".join(stream).decode().split()
        self.here = True
        made = [name.removeprefix("forge/").partition(":") for name in self.loaded if name.startswith("forge/")]
        self.built += [ImageBuild(family, key, "loaded", Path()) for family, _, key in made]
        return tuple(self.loaded)

    def reap(self) -> tuple[str, ...]:
        return ()
