"""Files and help texts out of an image, on a real Docker engine; nothing of it runs to read a file."""

from pathlib import Path
from secrets import token_hex

import pytest

from docker_fixture import PLAIN, names
from forge.errors import StepError
from forge.machine.containers import ImageBuild
from forge.machine.docker.containers import DockerContainers


def test_a_file_and_a_folder_are_read(containers: DockerContainers) -> None:
    found = containers.read(PLAIN, ("/app/examples", "/app/entrypoint.sh"))
    assert set(found) == {"/app/examples/convert.py", "/app/examples/deep/er/data.bin", "/app/entrypoint.sh"}
    assert found["/app/examples/deep/er/data.bin"] == bytes(range(256))


def test_what_the_image_does_not_have_is_left_out(containers: DockerContainers) -> None:
    assert set(containers.read(PLAIN, ("/app/examples/models/core", "/app/entrypoint.sh/x", "/app/entrypoint.sh"))) == {
        "/app/entrypoint.sh"
    }


def test_links_are_followed_inside_the_image_only(containers: DockerContainers, tmp_path: Path, engine: str) -> None:
    held = containers.inspect(PLAIN)
    assert held is not None
    links = (
        *("-s examples /app/linked", "-s /app/linked /app/twice", "-s loop /app/loop"),
        *("-s ../../../../etc/shadow /app/examples/out.py", "-s convert.py /app/examples/also.py"),
        "/app/examples/convert.py /app/examples/hard.py",
    )
    text = f"FROM {held.base}\nRUN {' && '.join(f'ln {link}' for link in links)}\n"
    image = containers.build(ImageBuild("links", f"links-{token_hex(6)}", text, tmp_path / "log"), lambda line: None)
    found = containers.read(image, ("/app/twice",))
    assert found.keys() == {f"/app/twice/{name}" for name in ("convert.py", "also.py", "hard.py", "deep/er/data.bin")}
    assert found["/app/twice/also.py"] == found["/app/twice/hard.py"] == b"print('converts')\n"
    assert containers.read(image, ("/app/loop",)) == {}


def test_a_folder_that_is_far_too_large_is_refused(containers: DockerContainers, tmp_path: Path) -> None:
    held = containers.inspect(PLAIN)
    assert held is not None
    text = f"FROM {held.base}\nRUN dd if=/dev/zero of=/large bs=1M count=260\n"
    image = containers.build(ImageBuild("large", f"large-{token_hex(6)}", text, tmp_path / "log"), lambda line: None)
    with pytest.raises(StepError, match="more than 256 MiB"):
        containers.read(image, ("/large",))


def test_a_help_text_is_the_programs_own_output_alone(containers: DockerContainers) -> None:
    script = (
        "import argparse, sys; print('noise', file=sys.stderr); parser = argparse.ArgumentParser(prog='x');"
        "parser.add_argument('--' + 'long_' * 20, help='word ' * 20); parser.parse_args(['--help'])"
    )
    text = containers.help_text(PLAIN, ("python3", "-c", script))
    assert text.startswith("usage: x")
    assert "noise" not in text
    assert "banner" not in text
    assert max(map(len, text.splitlines())) > 90


def test_a_program_that_gives_no_help_is_named(containers: DockerContainers, engine: str) -> None:
    before = names(engine)
    with pytest.raises(StepError, match="exited with 2"):
        containers.help_text(PLAIN, ("python3", "/app/none.py", "--help"))
    with pytest.raises(StepError, match="trtllm-build --help exited with 127") as caught:
        containers.help_text(PLAIN, ("trtllm-build", "--help"))
    assert "no such program" in caught.value.hint
    assert names(engine) <= before
