"""A bundle as somebody could make it who has another one: its own blobs and records under contents that were changed."""

import tarfile
from collections.abc import Callable
from pathlib import Path

from forge.build.bundle.contents import Contents, encode, read
from forge.remote.tarred import Packed, Packing


def resealed(file: Path, change: Callable[[Contents], Contents]) -> Path:
    """The same bundle beside it, with other contents and sealed anew; a signature in them stays the former one."""
    packed, target = Packed(file), file.with_name("resealed.forge")
    packing = Packing(target)
    with tarfile.open(file) as tar:
        for member in tar.getmembers()[:-1]:
            data = tar.extractfile(member)
            assert data is not None
            folder, _, name = member.name.split("/")
            if folder == "files":
                packing.put(name, data.read())
            else:
                packing.write(name, data.read(), {}, anew=False)
    packing.publish(encode(change(read(packed))))
    packed.close()
    return target
