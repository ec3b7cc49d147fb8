"""A wheel of one file."""

import base64
import hashlib
import zipfile
from pathlib import Path

FILE = "tiny_model/model.safetensors"


def wheel(folder: Path, data: bytes, recorded: bytes | None = None, file: str = FILE) -> None:
    """tiny-model 1.0 with one file; ``recorded`` is what its RECORD was made from."""
    info = "tiny_model-1.0.dist-info"
    made = hashlib.sha256(data if recorded is None else recorded).digest()
    sha = base64.urlsafe_b64encode(made).rstrip(b"=").decode()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(file, data)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{file},sha256={sha},{len(data)}\n{info}/RECORD,,\n")
