"""A small random LLaVA with all its files, and what transformers says of a text and images to it."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer

from skeleton_kit import TOKENIZERS
from tiny_checkpoints import torch, transformers

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}<|im_end|>{% endfor %}<|im_start|>"
)
SIDE, PATCH = 56, 14
TOKENS = (SIDE // PATCH) ** 2
"""Of an image in a prompt."""


@dataclass(frozen=True)
class Llava:
    """transformers' own model and its processor of texts and images."""

    model: Any
    processor: Any

    def says(self, prompt: str, images: Sequence[Image.Image], count: int) -> tuple[list[int], list[float]]:
        """The likeliest tokens after the prompt and their log-probabilities."""
        given = self.processor(text=prompt, images=list(images) or None, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            out = self.model.generate(
                **given, max_new_tokens=count, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        ids = out.sequences[0, given["input_ids"].shape[1] :].tolist()
        likely = [torch.log_softmax(logits[0], -1)[token].item() for logits, token in zip(out.logits, ids, strict=True)]
        return ids, likely


def llava(folder: Path) -> Llava:
    """A random LLaVA in the folder: CLIP's tower, a Llama, a tokenizer of bytes. It needs no torchvision."""
    tokenizer = Tokenizer.from_str(TOKENIZERS["byte_level"].to_str())
    tokenizer.add_special_tokens(["<image>"])  # pyright: ignore[reportUnknownMemberType]
    begin, end, image = (tokenizer.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>", "<image>"))
    torch.manual_seed(0)
    seen = transformers.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        projection_dim=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        initializer_range=0.3,
    )
    read = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=end,
    )
    config = transformers.LlavaConfig(vision_config=seen, text_config=read, image_token_index=image, initializer_range=0.3)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "multi_modal_projector" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    clip: Any = importlib.import_module("transformers.models.clip.image_processing_pil_clip")
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    cut = clip.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = transformers.LlavaProcessor(
        cut,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return Llava(model, processor)
