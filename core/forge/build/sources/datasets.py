"""Which files of a data set are fetched: those that NVIDIA's quantize.py can read texts from, and nothing that runs.

It gives a folder to ``datasets.load_dataset(folder, split="train")`` and takes the column ``text`` (get_calib_dataloader in
tensorrt_llm/quantization/quantize_by_modelopt.py, 0.17 to 1.2). That library finds data by their endings in all subfolders but
hidden ones, and reads in README.md which of them are the train split.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from forge.errors import SourceError

ENDINGS = (".parquet", ".jsonl", ".json", ".csv", ".txt")
PACKED = (".zst", ".gz")
CARDS = frozenset({"README.md", "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"})
"""What describes a data set. A loading script would too; one is never fetched, so none is ever run."""
_NO_DATA = frozenset({"config.json", "LICENSE.txt", "requirements.txt"}) | (CARDS - {"README.md"})
_LEFT_OUT = re.compile(r"^/|(^|/)(\.|__)")
"""Hidden files, and what would stand outside of the data set's own folder."""


def files(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The files of a data set, by path inside it, sorted. SourceError where none holds texts in a known form."""
    seen = sorted({name for name in names if not _LEFT_OUT.search(name)})
    data = [name for name in seen if _is_data(name)]
    if not data:
        scripts = [name for name in seen if name.endswith(".py")]
        why = f": it is made by a script ({scripts[0]}), and forge runs none" if scripts else ""
        hint = (
            f"name a data set of {', '.join(ENDINGS)} files (also {' or '.join(PACKED)}) whose train split has a column `text`"
        )
        raise SourceError(f"there are no texts to calibrate with{why}", where=where, hint=hint)
    return tuple(sorted({*data, *CARDS.intersection(seen)}))


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    stem = path.with_suffix("") if path.suffix in PACKED else path
    return stem.suffix in ENDINGS and path.name not in _NO_DATA
