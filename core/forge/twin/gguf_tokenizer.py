"""The tokenizer inside a GGUF file as tokenizer.json and tokenizer_config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .gguf_header import GgufError, Header

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's mark for a space."""
WORDS = (  # Llama 3's pattern; {digits} is all that Qwen 2's does otherwise
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"llama-bpe": r"\p{N}{1,3}", "llama3": r"\p{N}{1,3}", "llama-v3": r"\p{N}{1,3}", "qwen2": r"\p{N}"}
PLAIN = ("gpt-2", "gpt2")
SMOLLM = "smollm"


@dataclass(frozen=True, slots=True)
class Tokens:
    """``model`` is tokenizer.json, ``settings`` is tokenizer_config.json."""

    model: Tokenizer
    settings: Mapping[str, object]


def tokenizer(header: Header) -> Tokens:
    """GgufError names a vocabulary or pre-tokenizer that is not understood: a near miss would be wrong in silence."""
    kind = header.text("tokenizer.ggml.model")
    pieces = [str(piece) for piece in header.items("tokenizer.ggml.tokens")]
    match kind:
        case "gpt2":
            made = _byte_level(header, pieces)
        case "llama":
            made = _sentencepiece(header, pieces)
        case _:
            raise GgufError(f"the vocabulary is of kind {kind!r}; gpt2 (byte-level BPE) and llama (SentencePiece) are known")
    _add_special(made, header, pieces)
    _frame(made, header, pieces)
    return Tokens(made, _settings(header, pieces))


def _byte_level(header: Header, pieces: list[str]) -> Tokenizer:
    before = header.text("tokenizer.ggml.pre", "default")
    merges = [_pair(str(pair)) for pair in header.items("tokenizer.ggml.merges")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    if any(not vocabulary.keys() >= {*pair, "".join(pair)} for pair in merges):
        raise GgufError("damaged vocabulary: a merge speaks of tokens that are not there")
    made = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, ignore_merges=before.startswith("llama")))
    if before == SMOLLM:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif before in PLAIN:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif before in DIGITS:
        words = Regex(WORDS.format(digits=DIGITS[before]))
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(words, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        if before == "qwen2":
            made.normalizer = normalizers.NFC()
    else:
        known = ", ".join((SMOLLM, *PLAIN, *DIGITS))
        raise GgufError(f"the pre-tokenizer {before!r} is not known; known are {known}")
    made.decoder = decoders.ByteLevel()
    return made


def _pair(text: str) -> tuple[str, str]:
    left, _, right = text.partition(" ")
    return left, right


def _sentencepiece(header: Header, pieces: list[str]) -> Tokenizer:
    """SentencePiece's BPE: pairs merge in the order of their result's score, bytes stand in for unknown characters."""
    scores = [float(cast("float", score)) for score in header.items("tokenizer.ggml.scores")]
    unknown = header.token_id("unknown")
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(vocabulary, scores, _kinds(header, pieces)),
            unk_token=pieces[unknown] if unknown is not None else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = bool(header.fields.get("tokenizer.ggml.add_space_prefix", True))
    replaced = normalizers.Replace(" ", SPACE)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replaced]) if prefixed else replaced
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return made


def _merges(vocabulary: Mapping[str, int], scores: list[float], kinds: list[int]) -> list[tuple[str, str]]:
    mergeable = {piece for piece, number in vocabulary.items() if kinds[number] not in (UNKNOWN, CONTROL, BYTE)}
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece in mergeable:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in mergeable and right in mergeable:
                found.append((-scores[vocabulary[piece]], vocabulary[left], vocabulary[right], (left, right)))
    return [pair for *_, pair in sorted(found)]


def _kinds(header: Header, pieces: list[str]) -> list[int]:
    kinds = [int(cast("int", kind)) for kind in header.items("tokenizer.ggml.token_type")]
    if len(kinds) != len(pieces):
        raise GgufError(f"damaged header: {len(pieces)} tokens and {len(kinds)} token kinds")
    return kinds


def _add_special(made: Tokenizer, header: Header, pieces: list[str]) -> None:
    kinds = _kinds(header, pieces)
    made.add_special_tokens(  # pyright: ignore[reportUnknownMemberType]
        [
            AddedToken(piece, special=True, normalized=False)
            for piece, kind in zip(pieces, kinds, strict=True)
            if kind == CONTROL
        ]
    )
    # Runs of spaces come about by merges: their marks never stand in a raw text.
    made.add_tokens(  # pyright: ignore[reportUnknownMemberType]
        [
            AddedToken(piece, special=False, normalized=False)
            for piece, kind in zip(pieces, kinds, strict=True)
            if kind == USER_DEFINED and SPACE not in piece
        ]
    )


def _frame(made: Tokenizer, header: Header, pieces: list[str]) -> None:
    """Begin and end marks around a prompt, where the file asks for them."""
    before = header.text("tokenizer.ggml.pre", "default")
    usual = header.text("tokenizer.ggml.model") == "llama" or before in ("llama-bpe", "llama3", "llama-v3")
    begin, end = header.token_id("bos"), header.token_id("eos")
    first = [pieces[begin]] if begin is not None and header.fields.get("tokenizer.ggml.add_bos_token", usual) else []
    last = [pieces[end]] if end is not None and header.fields.get("tokenizer.ggml.add_eos_token", False) else []
    if first or last:
        made.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *(f"{mark}:1" for mark in first), "$B:1", *(f"{mark}:1" for mark in last)],
            special_tokens=[(mark, made.token_to_id(mark)) for mark in dict.fromkeys([*first, *last])],
        )


def _settings(header: Header, pieces: list[str]) -> dict[str, object]:
    names = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}
    marks = {f"{short}_token": pieces[token] for role, short in names.items() if (token := header.token_id(role)) is not None}
    if "eos_token" in marks:
        marks.setdefault("pad_token", marks["eos_token"])
    template = header.fields.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **marks,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": header.whole("context_length"),
        **({"chat_template": template} if isinstance(template, str) else {}),
    }
