"""Which stretches of a text a model's tokenizer makes its tokens of."""

from pathlib import Path


def spans(folder: Path, text: str) -> tuple[tuple[str, int], ...]:
    """The tokens of ``text`` as (text, how many): several where a character spans them. Joined they are ``text`` again.

    Empty where the folder has no tokenizer.json, or the package ``tokenizers`` is not installed here.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return ()
    file = folder / "tokenizer.json"
    if not file.is_file():
        return ()
    offsets: list[tuple[int, int]] = Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).offsets
    groups: list[tuple[int, int]] = []  # where each ends, and of how many tokens it is
    for begin, end in offsets:
        if groups and begin < groups[-1][0]:  # tokens of one character all state that character
            reached, count = groups.pop()
            groups.append((max(reached, end), count + 1))
        else:
            groups.append((end, 1))
    begins = (0, *(end for end, _ in groups[:-1]))
    return tuple((text[begin:end], count) for begin, (end, count) in zip(begins, groups, strict=True))
