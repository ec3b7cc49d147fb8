"""Common GPUs as data: what a card has, for judging whether a model fits one that is not here.

Memory is NVML's total, in MiB as nvidia-smi prints it: the datasheet's GB less what error correction and the driver keep. A
driver that differs moves it by some MiB. Sources: nvidia-smi's own output for each card, most of them gathered in
https://thundergolfer.com/blog/nvidia-gpu-memory-capacity; compute capability from https://developer.nvidia.com/cuda-gpus;
bandwidth, in GB/s, from NVIDIA's datasheets.
"""

import difflib
import re
from dataclasses import dataclass

from forge.errors import HostError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Memory in bytes, bandwidth in bytes per second (0: not known), ``free`` what no process holds now."""

    name: str
    memory: int
    capability: str
    """Compute capability, as ``8.9``; empty where nobody says."""
    bandwidth: int = 0
    free: int | None = None
    """None for a card that is only named: all of its memory is taken for free."""

    @property
    def available(self) -> int:
        return self.memory if self.free is None else self.free

    def at_least(self, capability: str) -> bool:
        """Whether its compute capability is this one or newer; a card that does not say is taken for new."""
        return not self.capability or _version(self.capability) >= _version(capability)


def _gpu(name: str, mib: int, capability: str, gigabytes: int) -> Gpu:
    return Gpu(name, mib * MIB, capability, gigabytes * 10**9)


TABLE = (
    _gpu("B200", 183359, "10.0", 8000),
    _gpu("H200", 143771, "9.0", 4800),
    _gpu("H200 NVL", 143771, "9.0", 4800),
    _gpu("H100 NVL", 95830, "9.0", 3938),
    _gpu("H100 SXM", 81559, "9.0", 3352),
    _gpu("H100 PCIe", 81559, "9.0", 2039),
    _gpu("H20", 97871, "9.0", 4000),
    _gpu("GH200", 97871, "9.0", 4000),
    _gpu("A100 80GB SXM", 81920, "8.0", 2039),
    _gpu("A100 80GB PCIe", 81920, "8.0", 1935),
    _gpu("A100 40GB", 40960, "8.0", 1555),
    _gpu("A30", 24576, "8.0", 933),
    _gpu("A40", 46068, "8.6", 696),
    _gpu("A16", 15356, "8.6", 200),
    _gpu("A10", 23028, "8.6", 600),
    _gpu("A10G", 23028, "8.6", 600),
    _gpu("A2", 15356, "8.6", 200),
    _gpu("L40S", 46068, "8.9", 864),
    _gpu("L40", 46068, "8.9", 864),
    _gpu("L20", 46068, "8.9", 864),
    _gpu("L4", 23034, "8.9", 300),
    _gpu("T4", 15360, "7.5", 320),
    _gpu("V100 32GB", 32768, "7.0", 900),
    _gpu("V100 16GB", 16384, "7.0", 900),
    _gpu("RTX PRO 6000 Blackwell", 97887, "12.0", 1792),
    _gpu("RTX 6000 Ada", 49140, "8.9", 960),
    _gpu("RTX A6000", 49140, "8.6", 768),
    _gpu("RTX A5000", 24564, "8.6", 768),
    _gpu("RTX A4000", 16376, "8.6", 448),
    _gpu("RTX 5090", 32607, "12.0", 1792),
    _gpu("RTX 5080", 16303, "12.0", 960),
    _gpu("RTX 5070 Ti", 16303, "12.0", 896),
    _gpu("RTX 4090", 24564, "8.9", 1008),
    _gpu("RTX 4080", 16376, "8.9", 717),
    _gpu("RTX 4070", 12282, "8.9", 504),
    _gpu("RTX 4060 Ti 16GB", 16380, "8.9", 288),
    _gpu("RTX 4060", 8188, "8.9", 272),
    _gpu("RTX 3090", 24576, "8.6", 936),
    _gpu("RTX 3080", 10240, "8.6", 760),
    _gpu("RTX 3060", 12288, "8.6", 360),
)


def find(name: str) -> Gpu:
    """The card of that name, by the table's words or nvidia-smi's; HostError names the nearest where there is none."""
    wanted = _words(name)
    same = [gpu for gpu in TABLE if _words(gpu.name) == wanted]
    near = same or [gpu for gpu in TABLE if set(wanted) <= set(_words(gpu.name))]
    if near:
        return min(near, key=lambda gpu: gpu.memory)
    plain = {" ".join(_words(gpu.name)): gpu.name for gpu in TABLE}
    close = [plain[each] for each in difflib.get_close_matches(" ".join(wanted), plain, n=3, cutoff=0.4)]
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise HostError("forge knows no such GPU", where=name, hint=f"{hint}known: {', '.join(gpu.name for gpu in TABLE)}")


def known(name: str) -> Gpu | None:
    """The table's card for a name as the driver says it (``NVIDIA GeForce RTX 4090``); None where there is none."""
    try:
        return find(name)
    except HostError:
        return None


def clash(some: frozenset[str], others: frozenset[str]) -> bool:
    """Whether two steps want a GPU both. One that takes all wants each; a number and an id may mean the same."""
    if not some or not others:
        return False
    numbers = {name.isdigit() for name in some | others}
    return "all" in some | others or len(numbers) > 1 or not some.isdisjoint(others)


def _words(name: str) -> tuple[str, ...]:
    """A name's words as they count: lower case, without maker and brand, ``RTX4090`` and ``80 GB`` taken apart or joined."""
    text = re.sub(r"\b(nvidia|geforce|tesla|quadro|generation|laptop gpu|gpu|hbm3e?)\b", " ", name.lower())
    text = re.sub(r"(\d+)\s*gi?b\b", r"\1gb", text)
    text = re.sub(r"\brtx(?=\d)", "rtx ", text)
    return tuple(re.findall(r"[a-z0-9]+", text))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))
