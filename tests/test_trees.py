"""Trees of files that change while forge looks at them."""

import os
import sys
from pathlib import Path

from forge.files import trees


def test_bytes_are_counted_while_folders_vanish(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "half").write_bytes(b"12345")

    def vanish(event: str, told: tuple[object, ...]) -> None:
        if event == "os.scandir" and str(told[0]) == str(tmp_path / "gone"):
            os.rmdir(tmp_path / "gone")

    sys.addaudithook(vanish)  # for good; no other test looks there
    assert trees.size_below(tmp_path) == 5
    assert not (tmp_path / "gone").exists()
