"""A tiny checkpoint with a tokenizer of its own, and the faults that verification has to find in what is served of it."""

import importlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import tiny_checkpoints
from forge.verify.tolerances import table as allowances
from forge.verify.transcripts import Reference, Transcript

DOCS = Path(__file__).parents[2] / "docs"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
PROMPTS = (
    {"name": "short", "text": "The recipe says what the build needs"},
    {"name": "multilingual", "text": "Grüße aus Köln, привет, 你好"},
    {"name": "emoji", "text": "🙂 🎉 🚀 and so on"},
    {"name": "code", "text": "def key(step):\n    return step.key"},
    {"name": "chat", "messages": [{"role": "user", "content": "What is in the store?"}]},
)
RECIPE = """name = "{name}"
family = "llama"

[source]
path = "checkpoint"

[runtime]
kind = "twin"

[build]
max_batch_size = 8
max_input_len = 128
max_seq_len = 256

[serve]
instances = 2

[verify]
prompts = "prompts.jsonl"
max_tokens = 20
{more}
"""


def checkpoint(folder: Path) -> Path:
    """Random weights under a tokenizer that was trained on the documentation, with a token that begins every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([(DOCS / "recipe.md").read_text(), (DOCS / "hooks.md").read_text()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    transformers: Any = importlib.import_module("transformers")
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    wrapped.save_pretrained(folder)
    tiny_checkpoints.make("llama", folder, vocab_size=1500)
    return folder


def recipe(folder: Path, name: str, more: str = "") -> Path:
    """A recipe for the checkpoint in ``folder``; ``more`` stands in its [verify] table."""
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS), encoding="utf-8")
    path = folder / f"{name}.toml"
    path.write_text(RECIPE.format(name=name, more=more), encoding="utf-8")
    return path


def edited(file: Path, change: Callable[[str], str]) -> None:
    """Change a published file; the store's, which shares its blocks, stays as it is."""
    before = file.read_text(encoding="utf-8")
    after = change(before)
    assert after != before
    file.unlink()
    file.write_text(after, encoding="utf-8")


def one_changed_merge(repository: Path, name: str) -> None:
    """The tokenizer's first merge comes last."""

    def change(text: str) -> str:
        stated = json.loads(text)
        merges = stated["model"]["merges"]
        merges.append(merges.pop(0))
        return json.dumps(stated)

    edited(repository / "_assets" / name / "tokenizer" / "tokenizer.json", change)


def special_tokens_flipped(repository: Path, name: str) -> None:
    """preprocessing adds none."""
    pattern = re.compile(r'(key: "add_special_tokens"\s*value\s*\{\s*string_value: )"true"')
    edited(repository / f"{name}-preprocessing" / "config.pbtxt", lambda text: pattern.sub(r'\1"false"', text, count=1))


def another_end(repository: Path, name: str) -> None:
    """To the tokenizer, texts end with the token that begins them."""

    def change(text: str) -> str:
        return json.dumps({**json.loads(text), "eos_token": "<s>"})

    edited(repository / "_assets" / name / "tokenizer" / "tokenizer_config.json", change)


def one_layer_scaled(repository: Path, name: str, asset: str = "engines") -> None:
    """One matrix of one layer is a twentieth larger."""
    file = repository / "_assets" / name / asset / "model.safetensors"
    files: Any = importlib.import_module("safetensors.numpy")  # typed only in part
    tensors = files.load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1.05
    file.unlink()
    files.save_file(tensors, file, metadata={"format": "pt"})


def spaces_dropped(repository: Path, name: str) -> None:
    """Whatever makes text of tokens loses the spaces."""
    call = re.compile(r"(self\._tokenizer\.decode\(.*skip_special_tokens=self\._skip\))")
    for role, module in (("postprocessing", "model"), ("tensorrt_llm_bls", "detokenizer")):
        file = repository / f"{name}-{role}" / "1" / f"{module}.py"
        edited(file, lambda text: call.sub(r'\1.replace(" ", "")', text))


def streams_mixed(repository: Path, name: str) -> None:
    """While several streams are open, each gets the piece that was meant for the one before."""
    line = "        held = [text_tensor([texts])]\n"
    wrong = '        if len(self._open) > 1:\n            texts, self._other = getattr(self, "_other", [""]), texts\n'
    edited(repository / f"{name}-tensorrt_llm_bls" / "1" / "model.py", lambda text: text.replace(line, wrong + line))


FAULTS: Mapping[str, Callable[[Path, str], None]] = {
    "merge": one_changed_merge,
    "special": special_tokens_flipped,
    "ends": another_end,
    "layer": one_layer_scaled,
    "spaces": spaces_dropped,
    "mixed": streams_mixed,
}
"""Name of a published copy -> what is wrong with it."""


EXACT, HALF, FOUR_BITS = (
    allowances().dtypes["float32"],
    allowances().dtypes["bfloat16"],
    allowances().quantizations["int4 weights"],
)


SAID = Transcript(
    name="short",
    prompt="The sky",
    ids=(1, 20, 21),
    tokens=(30, 31, 32),
    log_probs=(-0.5, -0.6, -0.7),
    rivals=(((30, -0.5), (40, -3.0)), ((31, -0.6), (41, -0.7)), ((32, -0.7), (42, -0.702)), ((2, -0.1), (50, -0.2))),
    text=" is very blue",
    lengths=(3, 8, 13),
)


REFERENCE = Reference(
    by="transformers", checkpoint="k", prompts="p", max_tokens=4, begin=1, ends=(2,), pad=2, transcripts=(SAID,)
)
