"""A checkpoint that says one sentence, token after token, with SentencePiece's blanks and bytes among them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers

WORDS = ("▁the", "▁capital", "▁of", "▁France", "▁is", "▁Paris")
SPANNING = "\N{CJK UNIFIED IDEOGRAPH-732B}\N{GRINNING FACE}"
"""A cat in three bytes and a face in four, none of them twice."""
CHAIN = (*WORDS, *(f"<0x{byte:02X}>" for byte in SPANNING.encode()), "▁and", "▁more")
SAID = f"capital of France is Paris{SPANNING} and more"
"""What follows ``the``, decoded whole: a SentencePiece tokenizer drops the blank in front."""
COUNT = len(CHAIN) - 1


def tokenizer() -> Tokenizer:
    """As Llama 2's, of the words that are said: a blank in front of every text, and bytes for what has no token."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += sorted({letter for word in CHAIN if word.startswith("▁") for letter in word})
    merges: list[tuple[str, str]] = []
    for word in (word for word in CHAIN if word.startswith("▁")):
        for end in range(2, len(word) + 1):
            if word[:end] not in names:
                names.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    vocabulary = {name: number for number, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])  # pyright: ignore[reportUnknownMemberType]
    return made


def lay(folder: Path) -> Path:
    """The checkpoint, as transformers saves it."""
    import tiny_checkpoints

    torch: Any = tiny_checkpoints.torch
    transformers: Any = tiny_checkpoints.transformers
    folder.mkdir(parents=True)
    words = tokenizer()
    words.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=words.get_vocab_size(),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    _chain(torch, model, [words.get_vocab()[word] for word in CHAIN])
    model.float().save_pretrained(folder)
    return folder


def _chain(torch: Any, model: Any, ids: Sequence[int]) -> None:
    """Its layers add nothing, and the head of each token is the embedding of the one before; the last one ends."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_() if weights.dim() > 1 else weights.fill_(1.0)
        embedding = torch.randn(model.config.vocab_size, model.config.hidden_size)
        model.model.embed_tokens.weight.copy_(embedding)
        for before, after in zip(ids, (*ids[1:], model.config.eos_token_id), strict=True):
            model.lm_head.weight[after] = embedding[before]
