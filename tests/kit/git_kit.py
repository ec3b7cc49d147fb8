"""Somebody's git repository, with LFS or without."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HAS_GIT = shutil.which("git") is not None


HAS_LFS = HAS_GIT and subprocess.run(("git", "lfs", "version"), capture_output=True, check=False).returncode == 0


needs_lfs = pytest.mark.skipif(not HAS_LFS, reason="git-lfs is not installed (Debian: apt install git-lfs)")


class Remote:
    """Somebody's repository: a folder that is worked in, pushed to a bare one."""

    def __init__(self, place: Path, lfs: bool) -> None:
        self.bare, self.work = place / "remote.git", place / "work"
        settings = {"user.name": "a", "user.email": "a@b", "init.defaultBranch": "main", "core.hooksPath": "/dev/null"}
        self._environ = {**os.environ, "GIT_CONFIG_GLOBAL": str(place / "gitconfig")}
        for name, value in settings.items():
            self.git("config", "--global", name, value, cwd=place)
        if lfs:
            self.git("lfs", "install", "--skip-repo", cwd=place)
        self.git("init", "-q", str(self.work), cwd=place)
        self.git("init", "-q", "--bare", str(self.bare), cwd=place)
        self.git("remote", "add", "origin", self.url)
        # As the hosts of repositories have it; without it git sends everything.
        self.git("config", "uploadpack.allowFilter", "true", cwd=self.bare)
        self._lfs = lfs

    @property
    def url(self) -> str:
        return self.bare.as_uri()

    @property
    def large(self) -> list[Path]:
        return [path for path in (self.bare / "lfs" / "objects").rglob("*") if path.is_file()]

    def git(self, *words: str, cwd: Path | None = None) -> str:
        where = cwd or self.work
        return subprocess.run(
            ("git", *words), cwd=where, env=self._environ, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self, files: dict[str, bytes], tag: str = "") -> str:
        if self._lfs:
            (self.work / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        for name, data in files.items():
            (self.work / name).parent.mkdir(parents=True, exist_ok=True)
            (self.work / name).write_bytes(data)
        return self.push(tag)

    def push(self, tag: str = "") -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "more")
        if tag:
            self.git("tag", "-a", "-m", "a release", tag)
        if self._lfs:
            self.git("lfs", "push", "--all", "origin", "main")
        self.git("push", "-q", "--follow-tags", "origin", "main")
        return self.git("rev-parse", "HEAD")

    def link(self, name: str, to: str) -> None:
        (self.work / name).unlink(missing_ok=True)
        (self.work / name).symlink_to(to)
