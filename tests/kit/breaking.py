"""Ways to break a model repository: each breaks one rule of ``forge check`` and no other."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import check_kit as kit
from checkpoints import pointer, safetensors
from forge.schema.values import COMMON_ROLES
from vllm_models import lay as lay_vllm

ASSETS = f"_assets/{kit.NAME}"
CONFIG = f"{ASSETS}/engines/config.json"
TOKENIZER = f"{ASSETS}/tokenizer"
Break = Callable[[Path], object]
Edit = Callable[[Any], object]


# fmt: off
def pbtxt(folder: str, pattern: str, put: str) -> Break:
    return lambda root: kit.replace(root, f"{folder}/config.pbtxt", pattern, put)


def parameters(folder: str, **values: str | None) -> Break:
    return lambda root: kit.parameter(root, folder, **values)


def built(**changes: object) -> Break:
    return lambda root: kit.document(root, CONFIG, **changes)


def edited(folder: str, edit: Edit) -> Break:
    return lambda root: kit.change(root, folder, edit)


def step(number: int, edit: Edit) -> Break:
    return lambda root: kit.change(root, "ensemble", lambda message: edit(message.ensemble_scheduling.step[number]))


def both(*breaks: Break) -> Break:
    def change(root: Path) -> None:
        for each in breaks:
            each(root)

    return change


def drops_blanks(root: Path) -> None:
    """The tokenizer decodes as SentencePiece does, and bls is not forge's own."""
    file = root / TOKENIZER / "tokenizer.json"
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), "decoder": metaspace}))
    kit.replace(root, "tensorrt_llm_bls/1/model.py", "Detokenizer", "Text")


def emptied(root: Path) -> None:
    for file in (root / TOKENIZER).iterdir():
        file.unlink()


def by_hand(root: Path) -> None:
    """Nobody says any more who made it."""
    (root / "forge.json").unlink()


def hidden(root: Path) -> None:
    """A version control's folder in a repository that is made for the default control mode."""
    shutil.rmtree(root)
    kit.lay(root, inside=True)
    (root / ".git").mkdir()


def beside(root: Path) -> None:
    """A second model, and both under prefixes."""
    shutil.rmtree(root)
    kit.lay(root, "one", prefix="one")
    kit.lay(root, "two", prefix="two")


def prefixed(root: Path) -> None:
    shutil.rmtree(root)
    kit.lay(root, prefix="x")


def inside(root: Path) -> None:
    """Two models by hand, all assets in a model's own folder: as Triton's default control mode takes it."""
    beside(root)
    by_hand(root)
    shutil.move(root / "_assets", root / "one-tensorrt_llm" / "_assets")
    for file in root.glob("*/config.pbtxt"):
        file.write_text(file.read_text().replace("/forge/repository/_assets", "/forge/repository/one-tensorrt_llm/_assets"))


def drafted(root: Path) -> None:
    """A second engine that guesses in another vocabulary."""
    shutil.copytree(root / "tensorrt_llm", root / "tensorrt_llm_draft")
    shutil.copytree(root / ASSETS / "engines", root / ASSETS / "draft")
    kit.change(root, "tensorrt_llm_draft", lambda message: setattr(message, "name", "tensorrt_llm_draft"))
    kit.parameter(root, "tensorrt_llm_draft", gpt_model_path=f"/forge/repository/{ASSETS}/draft")
    kit.document(root, f"{ASSETS}/draft/config.json", pretrained_config__vocab_size=512)
    kit.parameter(root, "tensorrt_llm_bls", tensorrt_llm_draft_model_name="tensorrt_llm_draft")
    held = json.loads((root / "forge.json").read_text())
    held["models"][0]["roles"]["tensorrt_llm_draft"] = "tensorrt_llm_draft"
    (root / "forge.json").write_text(json.dumps(held))


def llmapi(root: Path, model: str = "/forge/repository/_assets/tiny/engines", decoupled: str = "True") -> None:
    """NVIDIA's llmapi model in the place of all others."""
    for role in COMMON_ROLES:
        shutil.rmtree(root / role)
    by_hand(root)
    folder = root / "tensorrt_llm"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
    (folder / "1" / "model.yaml").write_text(f"model: {model}\ntriton_config:\n  max_batch_size: 0\n  decoupled: {decoupled}\n")
    tensors = 'input { name: "text_input" data_type: TYPE_STRING dims: [ -1 ] }'
    (folder / "config.pbtxt").write_text(f'name: "tensorrt_llm"\nbackend: "python"\n{tensors}\n')
    shutil.move(root / "_assets", folder / "_assets")


def long_llmapi(root: Path) -> None:
    """It is told of more tokens than its checkpoint knows."""
    file = root / "tensorrt_llm/1/model.yaml"
    file.write_text(f"{file.read_text()}max_seq_len: 4096\n")
    checkpoint = json.dumps({"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048})
    (root / "tensorrt_llm" / ASSETS / "engines/config.json").write_text(checkpoint)


def vllm(root: Path, text: str = "", **arguments: object) -> None:
    """A model of vLLM in the place of all others; ``text`` stands in its model.json."""
    shutil.rmtree(root)
    lay_vllm(root, "one", **arguments)
    if text:
        (root / "one/1/model.json").write_text(text)


NGRAM = {"method": "ngram", "num_speculative_tokens": 4}


def adapter(root: Path, **config: object) -> None:
    """A LoRA adapter for the model of vLLM, whose adapter_config.json says so much."""
    folder = root / "one/_assets/loras/sql"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (root / "one/1/multi_lora.json").write_text('{"sql": "./_assets/loras/sql"}')


def laid(*, rank: int = 8, module: int = 1, names: Mapping[str, int] | None = None) -> Break:
    """An engine for adapters of rank 8 over queries, keys and values, and one adapter."""

    def change(root: Path) -> None:
        folder = root / ASSETS / "loras/1"
        folder.mkdir(parents=True)
        np.save(folder / "model.lora_config.npy", np.array([[[module, 0, rank]]], "<i4"))
        (root / ASSETS / "loras.json").write_text(json.dumps(names or {"sql": 1}))
        lora = {"max_lora_rank": 8, "lora_target_modules": ["attn_q", "attn_k", "attn_v"]}
        plugins = {"lora_plugin": "float16", "use_paged_context_fmha": True}
        built(build_config__lora_config=lora, build_config__plugin_config=plugins)(root)
        parameters("tensorrt_llm", lora_prefetch_dir=f"/forge/repository/{ASSETS}/loras")(root)

    return change


LLMAPI = "/forge/repository/tensorrt_llm/_assets/tiny/engines"
NVIDIAS_BLS = 'decoder = TritonDecoder(preproc_model_name="preprocessing", postproc_model_name="postprocessing")\n'
SENTENCE_PIECE = both(emptied, lambda root: (root / TOKENIZER / "tokenizer.model").write_bytes(b"\x0a" * 2000))
NO_PAGED = built(build_config__plugin_config={"use_paged_context_fmha": False})
LOOKING_AHEAD = built(build_config__speculative_decoding_mode=8)
LOOKAHEAD = {"lookahead_window_size": "4", "lookahead_ngram_size": "3", "lookahead_verification_set_size": "4"}
GUIDE = f"{ASSETS}/info.json"


def guide(root: Path) -> None:
    (root / GUIDE).write_text("{}")

BREAKS: tuple[tuple[str, str, Break], ...] = (
    ("unreadable", "a field that is none", pbtxt("postprocessing", "max_batch_size", "max_batchsize")),
    ("unreadable", "no config.pbtxt", lambda root: (root / "ensemble" / "config.pbtxt").unlink()),
    ("placeholder", "where a number stands", pbtxt("postprocessing", "max_batch_size: 8", "max_batch_size: ${size}")),
    ("placeholder", "the backend", pbtxt("tensorrt_llm", '"tensorrtllm"', '"${triton_backend}"')),
    ("placeholder", "the tokenizer", parameters("preprocessing", tokenizer_dir="${tokenizer_dir}")),
    ("placeholder", "the batching strategy", parameters("tensorrt_llm", gpt_model_type="${batching_strategy}")),
    ("placeholder-unset", "of the engine", parameters("tensorrt_llm", num_nodes="${num_nodes}")),
    ("placeholder-unset", "of bls", parameters("tensorrt_llm_bls", tensorrt_llm_draft_model_name="${name}")),
    ("parameter-missing", "the batching strategy", parameters("tensorrt_llm", gpt_model_type=None)),
    ("parameter-missing", "what NVIDIA's code wants there", both(
        lambda root: (root / "preprocessing/1/model.py").write_text("path = parameters['multimodal_model_path']\n"),
        parameters("preprocessing", multimodal_model_path=None),
    )),
    ("parameter-unknown", "misspelled", parameters("tensorrt_llm", kv_cache_free_gpu_mem_fractoin="0.5")),
    ("parameter-unknown", "of another model", parameters("postprocessing", add_special_tokens="true")),
    ("parameter-value", "no answer", parameters("tensorrt_llm", enable_kv_cache_reuse="no")),
    ("parameter-value", "no number", parameters("tensorrt_llm", num_nodes="one")),
    ("parameter-value", "no such word", parameters("tensorrt_llm", decoding_mode="greedy")),
    ("batching-type", "no such word", parameters("tensorrt_llm", gpt_model_type="inflight")),
    ("tokenizer-type", "as notes have it", parameters("preprocessing", tokenizer_type="llama")),
    ("name", "a copied folder", pbtxt("postprocessing", 'name: "postprocessing"', 'name: "post"')),
    ("version-folder", "what git does not keep", lambda root: shutil.rmtree(root / "ensemble/1")),
    ("model-file", "gone", lambda root: (root / "preprocessing/1/model.py").unlink()),
    ("model-file", "of another name", edited(
        "preprocessing", lambda message: setattr(message, "default_model_filename", "x.py"))),
    ("ensemble-model", "renamed", step(0, lambda one: setattr(one, "model_name", "x-preprocessing"))),
    ("ensemble-tensor", "an input that is none", step(2, lambda one: one.input_map.update({"NOPE": "_TOKENS_BATCH"}))),
    ("ensemble-tensor", "left out", edited(
        "postprocessing", lambda message: message.input.add(name="NEEDED", data_type=8, dims=[1]))),
    ("ensemble-flow", "read and not written", step(2, lambda one: one.input_map.update({"SEQUENCE_LENGTH": "_NOBODY"}))),
    ("ensemble-flow", "an output that nobody writes", step(2, lambda one: one.output_map.update({"OUTPUT": "_text"}))),
    ("ensemble-flow", "an input that nobody reads", edited(
        "ensemble", lambda message: message.input.add(name="extra", data_type=8, dims=[1]))),
    ("ensemble-type", "another type", edited(
        "postprocessing", lambda message: setattr(kit.tensor(message, "TOKENS_BATCH"), "data_type", 9))),
    ("ensemble-type", "another shape", edited(
        "postprocessing", lambda message: kit.tensor(message, "SEQUENCE_LENGTH").dims.append(3))),
    ("ensemble-batch", "more than its members", pbtxt("ensemble", "max_batch_size: 8", "max_batch_size: 16")),
    ("bls-batch", "more than it can hand on", pbtxt("tensorrt_llm_bls", "max_batch_size: 8", "max_batch_size: 16")),
    ("bls-target", "a parameter", parameters("tensorrt_llm_bls", tensorrt_llm_model_name="llama")),
    ("bls-target", "a draft", parameters("tensorrt_llm_bls", tensorrt_llm_draft_model_name="draft")),
    ("bls-target", "NVIDIA's literals", both(
        prefixed,
        lambda root: (root / "x-tensorrt_llm_bls/1/model.py").write_text(NVIDIAS_BLS))),
    ("bls-port", "as of 2026", lambda root: kit.replace(
        root, "tensorrt_llm_bls/1/model.py", r"\Z", '\nbaseurl = "localhost:8001/v2/models/"\n')),
    ("decoupled-pair", "bls alone", pbtxt("tensorrt_llm", "decoupled: true", "decoupled: false")),
    ("whole-answers", "both", both(
        pbtxt("tensorrt_llm", "decoupled: true", "decoupled: false"),
        pbtxt("tensorrt_llm_bls", "decoupled: true", "decoupled: false"))),
    ("whole-answers", "llmapi", lambda root: llmapi(root, LLMAPI, "False")),
    ("stream-blanks", "bls", both(drops_blanks, parameters("tensorrt_llm_bls", accumulate_tokens="false"))),
    ("stream-blanks", "with more beams", both(
        drops_blanks,
        parameters("tensorrt_llm_bls", accumulate_tokens=None),
        built(build_config={**kit.ENGINE["build_config"], "max_beam_width": 4}))),
    ("engine-path", "gone", parameters("tensorrt_llm", gpt_model_path="/forge/repository/_assets/other/engines")),
    ("engine-path", "relative", parameters("tensorrt_llm", gpt_model_path="engines")),
    ("engine-path", "of the host", lambda root: kit.parameter(
        root, "tensorrt_llm", gpt_model_path=str(root / ASSETS / "engines"))),
    ("engine-unseen", "on another machine", parameters("tensorrt_llm", gpt_model_path="/engines/of/llama")),
    ("engine-config", "gone", lambda root: (root / CONFIG).unlink()),
    ("engine-config", "broken", lambda root: (root / CONFIG).write_text("{")),
    ("engine-config", "a stranger's", lambda root: (root / CONFIG).write_text('{"model_type": "llama"}')),
    ("engine-ranks", "one is missing", lambda root: (root / ASSETS / "engines/rank0.engine").unlink()),
    ("engine-ranks", "of the encoder", both(
        lambda root: shutil.copytree(root / ASSETS / "engines", root / ASSETS / "encoder"),
        lambda root: (root / ASSETS / "encoder/rank0.engine").unlink(),
        parameters("tensorrt_llm", encoder_model_path=f"/forge/repository/{ASSETS}/encoder"))),
    ("engine-ranks", "one too many", lambda root: (root / ASSETS / "engines/rank1.engine").write_bytes(b"\0" * 2000)),
    ("engine-world", "forge.json says one", both(
        built(pretrained_config__mapping={"tp_size": 2, "pp_size": 1, "world_size": 2}),
        lambda root: (root / ASSETS / "engines/rank1.engine").write_bytes(b"\0" * 2000))),
    ("engine-batch", "fewer slots", built(build_config__max_batch_size=4)),
    ("engine-beam", "fewer beams", parameters("tensorrt_llm", max_beam_width="4")),
    ("engine-input", "one pass is too short", built(build_config__max_num_tokens=512)),
    ("engine-input", "no room for a prompt", lambda root: kit.replace(
        root, "forge.json", '"sampling": \\{', '"sampling": {"max_tokens": 4096')),
    ("kv-reuse", "by default", both(NO_PAGED, parameters("tensorrt_llm", enable_kv_cache_reuse=None))),
    ("kv-reuse", "asked for", both(NO_PAGED, parameters("tensorrt_llm", enable_kv_cache_reuse="true"))),
    ("chunked-context", "without paging", both(NO_PAGED, parameters("tensorrt_llm", enable_chunked_context="true"))),
    ("trained-length", "an engine", built(pretrained_config__max_position_embeddings=1024)),
    ("trained-length", "learned positions", built(
        pretrained_config__max_position_embeddings=1024, pretrained_config__position_embedding_type="learned_absolute")),
    ("trained-length", "llmapi", both(lambda root: llmapi(root, LLMAPI), long_llmapi)),
    ("kv-tokens", "less than a sequence", parameters("tensorrt_llm", max_tokens_in_paged_kv_cache="1024")),
    ("lookahead-sizes", "not given", both(LOOKING_AHEAD, parameters("tensorrt_llm", decoding_mode="lookahead"))),
    ("lookahead-sizes", "of one token", both(
        LOOKING_AHEAD,
        parameters("tensorrt_llm", decoding_mode="lookahead", **{**LOOKAHEAD, "lookahead_ngram_size": "1"}))),
    ("guided-decoding", "another backend", both(
        guide, parameters("tensorrt_llm", guided_decoding_backend="outlines",
            xgrammar_tokenizer_info_path=f"/forge/repository/{GUIDE}"))),
    ("guided-decoding", "no file", parameters("tensorrt_llm", guided_decoding_backend="xgrammar",
        xgrammar_tokenizer_info_path=f"/forge/repository/{GUIDE}")),
    ("cache-size", "all of the memory", parameters("tensorrt_llm", kv_cache_free_gpu_mem_fraction="1.0")),
    ("cache-size", "no beams", parameters("tensorrt_llm", max_beam_width="0")),
    ("device-ids", "too many", parameters("tensorrt_llm", gpu_device_ids="0,1")),
    ("device-ids", "too many ranks", parameters("tensorrt_llm", participant_ids="1,2")),
    ("cross-cache", "without an encoder", parameters("tensorrt_llm", cross_kv_cache_fraction="0.5")),
    ("inflight-engine", "no pages", built(build_config__kv_cache_type="DISABLED")),
    ("inflight-engine", "no plugin", built(build_config__plugin_config={
        "gpt_attention_plugin": None, "use_paged_context_fmha": True})),
    ("decoding-mode", "a plain engine", parameters("tensorrt_llm", decoding_mode="lookahead", **LOOKAHEAD)),
    ("decoding-mode", "of another kind", both(
        built(build_config__speculative_decoding_mode=8), parameters("tensorrt_llm", decoding_mode="medusa"))),
    ("draft-length", "no room for guesses", both(drafted, built(build_config__max_draft_len=0),
        lambda root: kit.document(root, f"{ASSETS}/draft/config.json", pretrained_config__vocab_size=kit.VOCABULARY))),
    ("lora-folder", "gone", parameters("tensorrt_llm", lora_prefetch_dir="/no/such/dir")),
    ("lora-folder", "an engine without the plugin", both(
        lambda root: (root / ASSETS / "adapters").mkdir(),
        parameters("tensorrt_llm", lora_prefetch_dir=f"/forge/repository/{ASSETS}/adapters"),
        built(build_config__plugin_config={"lora_plugin": None, "use_paged_context_fmha": True}))),
    ("lora-folder", "no array in it", both(
        laid(), lambda root: (root / ASSETS / "loras/1/model.lora_config.npy").write_bytes(b"x"))),
    ("lora-task", "no number", both(laid(), lambda root: (root / ASSETS / "loras/sql").mkdir())),
    ("lora-task", "one for two", laid(names={"sql": 1, "poems": 1})),
    ("lora-task", "of nobody", laid(names={"sql": 1, "poems": 2})),
    ("lora-rank", "above the engine's", laid(rank=16)),
    ("lora-rank", "another module", laid(module=7)),
    ("engine-config", "a Hugging Face folder", lambda root: (root / CONFIG).write_text(
        '{"architectures": ["LlamaForCausalLM"], "vocab_size": 320}')),
    ("attention-window", "longer than sequences", parameters("tensorrt_llm", max_attention_window_size="1024,4096")),
    ("instances", "two", pbtxt("tensorrt_llm", r"count: 1(\s+kind: KIND_CPU)", r"count: 2\1")),
    ("orchestrator", "by hand", inside),
    ("kv-memory", "all of it", both(beside, parameters("one-tensorrt_llm", kv_cache_free_gpu_mem_fraction="0.9"))),
    ("draft-vocabulary", "another family's", drafted),
    ("engine-image", "two versions in one server", both(
        beside, lambda root: kit.document(root, "_assets/two/engines/config.json", version="0.21.0"))),
    ("tokenizer-path", "gone", lambda root: shutil.rmtree(root / TOKENIZER)),
    ("tokenizer-path", "the hub's name", both(
        parameters("preprocessing", tokenizer_dir="meta-llama/Llama-2-7b"),
        parameters("postprocessing", tokenizer_dir="meta-llama/Llama-2-7b"))),
    ("tokenizer-files", "broken", lambda root: (root / TOKENIZER / "tokenizer.json").write_text("{")),
    ("tokenizer-files", "a stranger's", lambda root: (root / TOKENIZER / "tokenizer.json").write_text('{"a": 1}')),
    ("tokenizer-files", "empty", emptied),
    ("tokenizer-files", "a bare SentencePiece model", SENTENCE_PIECE),
    ("chat-template", "a file of its own, cut short", lambda root: (root / TOKENIZER / "chat_template.jinja").write_text(
        "{% for message in messages %}\n{{ message.content }}\n")),
    ("chat-template", "in the settings", lambda root: kit.document(
        root, f"{TOKENIZER}/tokenizer_config.json", chat_template="{{ messages[0].content")),
    ("tokenizer-special", "another model's", lambda root: kit.document(
        root, f"{TOKENIZER}/generation_config.json", eos_token_id=2)),
    ("tokenizer-vocabulary", "larger than the engine's", built(pretrained_config__vocab_size=300)),
    ("tokenizer-pair", "two folders", both(
        lambda root: shutil.copytree(root / TOKENIZER, root / ASSETS / "other"),
        parameters("postprocessing", tokenizer_dir=f"/forge/repository/{ASSETS}/other"))),
    ("bls-queue", "as NVIDIA's template has it", pbtxt("tensorrt_llm_bls", r"dynamic_batching \{\s*\}", "")),
    ("not-a-model", "assets at the top", by_hand),
    ("not-a-model", "a hidden folder, and assets inside", hidden),
    ("lfs-pointer", "an engine", lambda root: (root / ASSETS / "engines/rank0.engine").write_bytes(pointer(10**9))),
    ("lfs-pointer", "a tokenizer", lambda root: (root / TOKENIZER / "tokenizer.json").write_bytes(pointer(10**6))),
    ("truncated", "weights", lambda root: (root / ASSETS / "engines/model.safetensors").write_bytes(safetensors()[:-100])),
    ("manifest", "a folder is gone", lambda root: shutil.rmtree(root / "tensorrt_llm_bls")),
    ("vllm-arguments", "no JSON", lambda root: vllm(root, '{"model": "x",')),
    ("vllm-arguments", "no object", lambda root: vllm(root, "[1]")),
    ("vllm-arguments", "no file", both(vllm, lambda root: (root / "one/1/model.json").unlink())),
    ("vllm-model", "gone", lambda root: vllm(root, model="../_assets/other")),
    ("vllm-model", "no checkpoint", both(vllm, lambda root: (root / "one/_assets/model/config.json").unlink())),
    ("vllm-model", "not said", lambda root: vllm(root, model="")),
    ("vllm-argument", "misspelled", lambda root: vllm(root, max_modle_len=5)),
    ("vllm-decoupled", "answers once", both(
        vllm, lambda root: kit.replace(root, "one/config.pbtxt", "decoupled: true", "decoupled: false"))),
    ("vllm-kind", "two GPUs, and of one", both(
        lambda root: vllm(root, tensor_parallel_size=2),
        lambda root: kit.replace(root, "one/config.pbtxt", "KIND_MODEL", "KIND_GPU"))),
    ("vllm-kind", "a pipeline", both(
        lambda root: vllm(root, pipeline_parallel_size="2"),
        lambda root: kit.replace(root, "one/config.pbtxt", "KIND_MODEL", "KIND_GPU"))),
    ("vllm-batch", "below its requests", lambda root: vllm(root, max_num_batched_tokens=16, max_num_seqs=32)),
    ("vllm-batch", "below a prompt that goes whole", lambda root: vllm(
        root, max_num_batched_tokens=255, enable_chunked_prefill=False)),
    ("vllm-batch", "adapters and guesses", both(
        lambda root: vllm(root, enable_lora=True, max_num_seqs=32, max_num_batched_tokens=64, speculative_config=NGRAM),
        lambda root: adapter(root, r=8))),
    ("vllm-speculation", "not how many", lambda root: vllm(root, speculative_config={"method": "ngram"})),
    ("vllm-speculation", "none", lambda root: vllm(root, speculative_config={**NGRAM, "num_speculative_tokens": 0})),
    ("vllm-speculation", "from above", lambda root: vllm(
        root, speculative_config={**NGRAM, "prompt_lookup_min": 5, "prompt_lookup_max": 3})),
    ("vllm-speculation", "ranks of its own", lambda root: vllm(root, speculative_config={**NGRAM, "tensor_parallel_size": 1})),
    ("vllm-speculation", "not in step", lambda root: vllm(root, speculative_config=NGRAM, async_scheduling=True)),
    ("vllm-parallel", "heads", both(
        lambda root: vllm(root, tensor_parallel_size=2),
        lambda root: kit.document(root, "one/_assets/model/config.json", num_attention_heads=9))),
    ("vllm-parallel", "a pipeline in one process", lambda root: vllm(
        root, pipeline_parallel_size=2, distributed_executor_backend="uni")),
    ("vllm-parallel", "contexts", lambda root: vllm(root, decode_context_parallel_size=2)),
    ("vllm-parallel", "experts", lambda root: vllm(root, enable_eplb=True)),
    ("vllm-twice", "sizes of graphs", lambda root: vllm(
        root, cudagraph_capture_sizes=[1, 2], compilation_config={"cudagraph_capture_sizes": [1, 2]})),
    ("vllm-value", "more than the card", lambda root: vllm(root, gpu_memory_utilization=1.5)),
    ("vllm-value", "a rank of no size", both(
        lambda root: vllm(root, enable_lora=True, max_lora_rank=24), lambda root: adapter(root, r=8))),
    ("vllm-value", "adapters at hand", both(
        lambda root: vllm(root, enable_lora=True, max_loras=3, max_cpu_loras=2), lambda root: adapter(root, r=8))),
    ("vllm-lora", "not enabled", both(vllm, lambda root: adapter(root, r=8))),
    ("vllm-length", "above the checkpoint's", lambda root: vllm(root, max_model_len=513)),
    ("vllm-lora", "no list", lambda root: vllm(root, enable_lora=True)),
    ("vllm-lora", "gone", both(
        lambda root: vllm(root, enable_lora=True),
        lambda root: adapter(root, r=8),
        lambda root: shutil.rmtree(root / "one/_assets/loras"))),
    ("vllm-lora-rank", "above the stated", both(
        lambda root: vllm(root, enable_lora="true", max_lora_rank=8), lambda root: adapter(root, r=16))),
    ("vllm-lora-rank", "of one module, above the usual", both(
        lambda root: vllm(root, enable_lora=True), lambda root: adapter(root, r=8, rank_pattern={"q_proj": 32}))),
    ("vllm-memory", "two of the usual", both(vllm, lambda root: lay_vllm(root, "two"))),
    ("vllm-memory", "two that say it", both(
        lambda root: vllm(root, gpu_memory_utilization=0.6),
        lambda root: lay_vllm(root, "two", gpu_memory_utilization=0.5))),
    ("llmapi-model", "gone", lambda root: llmapi(root, "/forge/repository/other")),
    ("llmapi-model", "no checkpoint", both(
        lambda root: llmapi(root, LLMAPI), lambda root: (root / "tensorrt_llm" / CONFIG).unlink())),
    ("llmapi-model", "not said", lambda root: llmapi(root, "")),
    ("llmapi-decoupled", "in config.pbtxt alone", both(
        lambda root: llmapi(root, LLMAPI, "False"),
        edited("tensorrt_llm", lambda message: setattr(message.model_transaction_policy, "decoupled", True)))),
)
# fmt: on
