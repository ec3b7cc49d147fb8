"""A Docker engine of a test's own with a network of its own, to publish ports and to be killed. Root only."""

import os
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from docker_fixture import environ
from forge.machine.docker.daemon import Daemon


@contextmanager
def bridge() -> Generator[str]:
    """A network device for an engine of one's own, apart from any that the machine's engine may have."""
    name = f"forge{os.getpid() % 10**6}"
    for words in (("link", "add", name, "type", "bridge"), ("addr", "add", "172.31.253.1/24", "dev", name)):
        done = subprocess.run(("ip", *words), capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine lets no engine have a network of its own: {done.stderr.strip()}")
    try:
        yield name
    finally:
        subprocess.run(("ip", "link", "del", name), check=False)


class Engine:
    """An engine of one's own, with a network of its own whose ports its proxy publishes; it can be killed and come back."""

    def __init__(self, folder: Path, device: str) -> None:
        self.address = f"unix://{folder}/docker.sock"
        places = (f"--data-root={folder}/data", f"--exec-root={folder}/run", f"--pidfile={folder}/pid")
        self._words = (
            "dockerd",
            "--host",
            self.address,
            *places,
            f"--bridge={device}",
            "--iptables=false",
            "--ip6tables=false",
        )
        self._stack = ExitStack()
        self._folder = folder
        self._containerd = folder / "run" / "containerd" / "containerd.pid"

    def start(self) -> None:
        # After a SIGKILL of the last engine its containerd may still hold on: the first start then fails, the next does not.
        assert any(self._starts() for _ in range(3))

    def _starts(self) -> bool:
        # Their numbers may be those of zombies, where the machine's first process reaps none.
        for pid in (self._folder / "pid", self._containerd):
            pid.unlink(missing_ok=True)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        self._daemon = self._stack.enter_context(subprocess.Popen(self._words, **quiet))  # type: ignore[call-overload]
        while self._daemon.poll() is None:
            if not Daemon(environ(self.address)).check(gpus=False):
                return True
            time.sleep(0.1)
        return False

    def kill(self) -> None:
        os.kill(int(self._containerd.read_text()), signal.SIGKILL)
        self._daemon.kill()
        self._daemon.wait()

    def stop(self) -> None:
        self._daemon.terminate()
        self._stack.close()
        # One that was killed leaves its folders mounted.
        for place in (self._folder / "data", self._folder / "run" / "netns" / "default"):
            while subprocess.run(("umount", "-q", place), capture_output=True, check=False).returncode == 0:
                pass
