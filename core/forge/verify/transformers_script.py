"""Runs apart from forge, in any Python that has torch and transformers: what a checkpoint says to prompts, greedily.

    python transformers_script.py MODEL_FOLDER JOB.json OUT.json

It imports nothing of forge, for forge may not be there (another environment, a container), and nothing from the network.
"""

import hashlib
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

RIVALS = 5
ROOM = 1.3
"""Memory that loading takes, beside the weights themselves."""


def main(folder: str, job_file: str, out: str) -> None:
    """Read the job, ask the checkpoint, write what forge.verify.transcripts reads."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    asked, skipped = _encoded(transformers, tokenizer, folder, job)
    model, precision = _loaded(transformers, torch, folder)
    if job.get("adapter"):
        _merge(torch, model, Path(job["adapter"]))
    ends = _ends(model, tokenizer)
    model.generation_config = _greedy(transformers, model, ends)
    with torch.inference_mode():
        told: list[Any] = []
        for number, prompt in enumerate(asked, 1):
            print(f"prompt {number} of {len(asked)}: {prompt['name']!a}", flush=True)  # noqa: T201 - what forge shows meanwhile
            told.append(_transcript(torch, model, tokenizer, prompt, ends, job["max_tokens"]))
    found = {
        "by": f"transformers {transformers.__version__}, torch {torch.__version__}, {precision}",
        "checkpoint": job["checkpoint"],
        "prompts": job["prompts_digest"],
        "max_tokens": job["max_tokens"],
        "begin": tokenizer.bos_token_id,
        "ends": ends,
        "pad": tokenizer.pad_token_id,
        "template": _template(tokenizer) if any(prompt["messages"] for prompt in job["prompts"]) else "",
        "transcripts": told,
        "skipped": skipped,
    }
    Path(out).write_text(json.dumps(found), encoding="utf-8")


def _encoded(transformers: Any, tokenizer: Any, folder: str, job: Any) -> tuple[list[Any], dict[str, str]]:
    """The prompts with their ids, and those that the model's limits shut out."""
    asked: list[Any] = []
    skipped: dict[str, str] = {}
    # An encoder's prompt takes no room in a sequence: its decoder begins with one token.
    apart = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).is_encoder_decoder
    for prompt in job["prompts"]:
        if prompt["messages"]:
            found = tokenizer.apply_chat_template(
                prompt["messages"], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            found = tokenizer(prompt["text"])["input_ids"]
        ids = [int(each) for each in found]
        if job["max_input_len"] and len(ids) > job["max_input_len"]:
            skipped[prompt["name"]] = f"{len(ids)} tokens, and the model was built for {job['max_input_len']}"
        elif job["max_seq_len"] and (1 if apart else len(ids)) + job["max_tokens"] > job["max_seq_len"]:
            skipped[prompt["name"]] = f"{len(ids)} tokens and an answer are more than {job['max_seq_len']} in all"
        elif not ids:
            skipped[prompt["name"]] = "the tokenizer makes no token of it"
        else:
            asked.append({"name": prompt["name"], "text": prompt["text"], "ids": ids})
    return asked, skipped


def _loaded(transformers: Any, torch: Any, folder: str) -> tuple[Any, str]:
    """In float32 where that fits this machine's memory, otherwise as the checkpoint is."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    stored = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    # transformers 4.56 calls dtype what was torch_dtype before.
    dtype = "dtype" if hasattr(config, "dtype") else "torch_dtype"
    itemsize = getattr(getattr(config, dtype, None) or torch.float32, "itemsize", 4)
    fits = stored / itemsize * 4 * ROOM < _free()
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    chosen = torch.float32 if fits else "auto"
    model = kind.from_pretrained(folder, **{dtype: chosen}, local_files_only=True).eval()
    return model, str(next(model.parameters()).dtype).removeprefix("torch.")


def _merge(torch: Any, model: Any, adapter: Path) -> None:
    """Add a LoRA adapter to the weights, as PEFT's merge_and_unload does; SystemExit where it changes what is not there."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    held = importlib.import_module("safetensors.torch").load_file(str(adapter / "adapter_model.safetensors"))
    pairs = sorted(name.partition(".lora_A.")[0] for name in held if ".lora_A." in name)
    modules = {name: module for name, module in model.named_modules() if getattr(module, "weight", None) is not None}
    with torch.no_grad():
        for stem in pairs:
            name = stem.removeprefix("base_model.model.")
            found = [
                module for own, module in modules.items() if own == name or own.endswith("." + name.partition("layers.")[2])
            ]
            found = [modules[name]] if name in modules else found
            if len(found) != 1 or not found[0].weight.is_floating_point():
                raise SystemExit(f"the adapter changes {name}, and the model has no such weights")
            a, b = (held[f"{stem}.lora_{side}.weight"].float() for side in "AB")
            change = (b @ a) * _scale(config, name, a.shape[0])
            change = change.T if config.get("fan_in_fan_out") else change
            found[0].weight += change.to(found[0].weight.dtype)


def _scale(config: Any, name: str, rank: int) -> float:
    """lora_alpha / r, or / sqrt(r) with use_rslora; a module may have an alpha of its own."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    own = [value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name)]
    alpha = float(own[0] if own else config.get("lora_alpha") or 8)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _free() -> float:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return 0.0


def _ends(model: Any, tokenizer: Any) -> list[int]:
    stated = model.generation_config.eos_token_id if model.generation_config else None
    stated = getattr(model.config, "eos_token_id", None) if stated is None else stated
    several: list[Any] = [*stated] if isinstance(stated, list) else [stated]  # pyright: ignore[reportUnknownVariableType]
    # The tokenizer's own first: it is the one that preprocessing hands to the engine.
    return list(dict.fromkeys(int(each) for each in [tokenizer.eos_token_id, *several] if each is not None))


def _template(tokenizer: Any) -> str:
    """Of several chat templates the default one."""
    stated: Any = getattr(tokenizer, "chat_template", None)
    source: Any = stated if isinstance(stated, str | None) else stated.get("default")
    return hashlib.sha256(str(source).strip().encode()).hexdigest() if source else ""


def _transcript(torch: Any, model: Any, tokenizer: Any, prompt: Any, ends: list[int], most: int) -> Any:
    tokens: list[int] = []
    log_probs: list[float] = []
    rivals: list[list[tuple[int, float]]] = []
    for logits in _generated(torch, model, prompt["ids"], most):
        best = torch.topk(torch.log_softmax(logits.float(), dim=-1), RIVALS)
        top = [(int(token), float(value)) for token, value in zip(best.indices, best.values, strict=True)]
        rivals.append(top)
        if top[0][0] in ends:
            break
        tokens.append(top[0][0])
        log_probs.append(top[0][1])
    decoded = [tokenizer.decode(tokens[: count + 1], skip_special_tokens=True) for count in range(len(tokens))]
    text = decoded[-1] if decoded else ""
    return {
        "name": prompt["name"],
        "prompt": prompt["text"],
        "ids": prompt["ids"],
        "tokens": tokens,
        "log_probs": log_probs,
        "rivals": rivals,
        "text": text,
        "lengths": [_agreed(part, text) for part in decoded],
    }


def _generated(torch: Any, model: Any, ids: list[int], most: int) -> list[Any]:
    """The logits [vocabulary] from which transformers' `generate` took each token: which cache a model wants, and when it
    throws that away, is known there and nowhere else."""
    given = torch.tensor([ids])
    out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=most)
    return [each[0] for each in out.logits]


def _greedy(transformers: Any, model: Any, ends: list[int]) -> Any:
    """The likeliest token each time, and none of the checkpoint's own habits (a penalty, a forced first token), which nobody
    asks a served model for."""
    stated = [getattr(place, "decoder_start_token_id", None) for place in (model.generation_config, model.config)]
    return transformers.GenerationConfig(
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        bos_token_id=getattr(model.config, "bos_token_id", None),
        decoder_start_token_id=next((each for each in stated if each is not None), None),
    )


def _agreed(part: str, text: str) -> int:
    """How many characters of ``part`` the whole text begins with; a character that is not complete yet is none of it."""
    return next((place for place, (a, b) in enumerate(zip(part, text, strict=False)) if a != b), min(len(part), len(text)))


if __name__ == "__main__":
    main(*sys.argv[1:4])
