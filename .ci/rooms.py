"""The former name of file_sizes.py, for scripts that still call it."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("file_sizes.py")), run_name="__main__")
