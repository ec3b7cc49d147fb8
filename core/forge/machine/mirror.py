"""A patched script without mounting anything over it: a copy of its folder in which it stands instead of the original."""

import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

_COPIED = ".py"


def mirror(root: Path, overlays: Mapping[str, Path], scratch: Path) -> dict[str, str]:
    """Where each overlaid path, and each Python file beside one, is to be run from: path below ``root`` -> path in ``scratch``.

    Every folder on the way down is mirrored: what stands beside is linked, so that relative paths lead where they did. Python
    files beside a patched one are copied, since Python looks for siblings of where a link points to.
    """
    found: dict[str, str] = {}
    for path in overlays:
        parts = PurePosixPath(path).parts[1:]
        for depth in range(1, len(parts)):
            _level(root.joinpath(*parts[:depth]), scratch.joinpath(*parts[:depth]), copied=depth == len(parts) - 1)
    for path, patched in overlays.items():
        folder = PurePosixPath(path).parent
        target = scratch / path.lstrip("/")
        target.unlink(missing_ok=True)
        shutil.copyfile(patched, target)
        found |= {str(folder / file.name): str(file) for file in target.parent.iterdir() if file.suffix == _COPIED}
    return found


def _level(original: Path, copy: Path, *, copied: bool) -> None:
    """One folder: links to what is in the original, but for what a deeper or an earlier mirror has put there already."""
    if copy.is_symlink():
        copy.unlink()
    copy.mkdir(exist_ok=True)
    for each in original.iterdir():
        target = copy / each.name
        if copied and each.suffix == _COPIED and each.is_file():
            target.unlink(missing_ok=True)
            shutil.copyfile(each, target)
        elif not target.exists() and not target.is_symlink():
            target.symlink_to(each)
