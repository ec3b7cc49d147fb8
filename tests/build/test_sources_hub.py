"""The hub as a source, against a hub on this machine."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from checkpoints import CONFIG, safetensors
from fakes import tiny_adapter
from forge.build.sources.hub import HubOrigin
from forge.errors import SourceError, StoreError
from forge.schema.recipe import Lora
from forge.schema.values import Pinned, Source, SourceKind
from loopback_hub import LoopbackHub, loopback_hub
from lying_server import lying

NAME, TOKEN = "acme/tiny", "hf_verysecretvalue"


FILES = {
    "config.json": CONFIG,
    "tokenizer.json": b"{}",
    "model.safetensors": safetensors(),
    "pytorch_model.bin": b"pickle",
    "README.md": b"# read me",
    "original/consolidated.00.pth": b"the same again",
    "onnx/model.onnx": b"the same again",
}
WANTED = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with loopback_hub() as running:
        yield running


class User:
    """Somebody with a home folder and an environment of their own."""

    def __init__(self, hub: LoopbackHub, home: Path, **environ: str) -> None:
        self.notes: list[str] = []
        self.environ = {"HF_ENDPOINT": hub.url, "HOME": str(home), **environ}
        self.origin = HubOrigin(home / "forge", self.environ, self.notes.append)
        self._home = home

    def pin(self, name: str = NAME, revision: str = "main", allow_pickle: bool = False) -> Pinned:
        return self.origin.pin(Source(hub=name, revision=revision, allow_pickle=allow_pickle), self._home)

    def fetch(self, pinned: Pinned, folder: str = "model") -> dict[str, bytes]:
        into = self._home / folder
        self.seen: list[tuple[int, int]] = []
        self.origin.fetch(pinned, into, lambda done, total: self.seen.append((done, total)))
        assert not any(path.is_symlink() for path in into.rglob("*"))
        return {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}


@pytest.fixture
def user(hub: LoopbackHub, tmp_path: Path) -> User:
    return User(hub, tmp_path)


def test_a_pin_names_commit_and_files_with_size_and_digest(hub: LoopbackHub, user: User) -> None:
    commit = hub.commit(NAME, FILES)
    pinned = user.pin()
    assert (pinned.kind, pinned.name, pinned.revision) == (SourceKind.HUB, NAME, commit)
    assert tuple(file.path for file in pinned.files) == WANTED
    assert [file.size for file in pinned.files] == [len(FILES[path]) for path in WANTED]
    assert [file.digest.partition(":")[0] for file in pinned.files] == ["gitsha1", "sha256", "gitsha1"]


def test_reading_says_what_config_json_says_and_asks_once(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, FILES)
    pinned = user.pin()
    assert user.origin.read(pinned).architectures == ("LlamaForCausalLM",)
    asked = len(hub.requests)
    assert user.origin.read(pinned).architectures == ("LlamaForCausalLM",)
    assert len(hub.requests) == asked


def test_a_fetch_brings_the_pinned_files_and_nothing_else(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, FILES)
    assert user.fetch(user.pin()) == {path: FILES[path] for path in WANTED}
    total = sum(len(FILES[path]) for path in WANTED)
    assert user.seen[-1] == (total, total)


def test_a_fetch_brings_what_was_pinned_after_the_branch_moved(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, FILES)
    before = user.pin()
    hub.commit(NAME, {**FILES, "model.safetensors": safetensors(fill=2)})
    assert user.fetch(before)["model.safetensors"] == safetensors(fill=1)
    after = user.pin()
    assert after.revision != before.revision
    assert user.fetch(after, "second")["model.safetensors"] == safetensors(fill=2)


def test_a_broken_connection_is_taken_up_where_it_broke(hub: LoopbackHub, user: User) -> None:
    whole = safetensors(elements=3_000_000)  # the library writes, and so resumes, in pieces of 10 MiB
    hub.commit(NAME, {**FILES, "model.safetensors": whole})
    pinned = user.pin()
    hub.break_after, hub.breaks = 11 << 20, 1
    assert user.fetch(pinned)["model.safetensors"] == whole
    assert [asked.range for asked in hub.requests if asked.status == 206] == [f"bytes={10 << 20}-"]


def test_a_hub_that_stumbles_once_is_asked_again(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, FILES)
    hub.failures = 1
    assert user.pin().name == NAME


def test_a_corrupt_file_of_right_size_is_named_and_discarded(hub: LoopbackHub, user: User, tmp_path: Path) -> None:
    hub.commit(NAME, FILES)
    pinned = user.pin()
    hub.swapped["model.safetensors"] = safetensors(fill=7)
    with pytest.raises(SourceError, match=r"model\.safetensors has the right size and wrong bytes"):
        user.fetch(pinned)
    assert not (tmp_path / "model" / "model.safetensors").exists()


def test_a_corrupt_small_file_is_found_by_its_git_id(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, FILES)
    pinned = user.pin()
    hub.swapped["tokenizer.json"] = b"[]"
    with pytest.raises(SourceError, match=r"tokenizer\.json has the right size and wrong bytes: gitsha1"):
        user.fetch(pinned)


def test_weights_that_are_truncated_on_the_hub_itself_are_named(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, {**FILES, "model.safetensors": safetensors()[:-10]})
    with pytest.raises(SourceError, match=r"model\.safetensors: truncated: its header promises"):
        user.fetch(user.pin())


def test_pickled_weights_are_refused_until_the_recipe_allows_them(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, {"config.json": CONFIG, "pytorch_model.bin": b"pickle", "training_args.bin": b"no weights"})
    with pytest.raises(SourceError, match=r"(?s)pickled \(pytorch_model\.bin\).*allow_pickle = true"):
        user.pin()
    assert [file.path for file in user.pin(allow_pickle=True).files] == ["config.json", "pytorch_model.bin"]


def test_a_gated_repository_says_where_to_accept_the_licence(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, FILES, token=TOKEN, gated=True)
    pinned = user.pin()
    with pytest.raises(SourceError, match="gated") as caught:
        user.fetch(pinned)
    assert f"{hub.url}/{NAME}" in caught.value.hint
    assert "hf auth login" in caught.value.hint


def test_the_right_token_opens_a_gated_repository(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit(NAME, FILES, token=TOKEN, gated=True)
    user = User(hub, tmp_path, HF_TOKEN=TOKEN)
    assert user.fetch(user.pin())["config.json"] == CONFIG


def test_a_cached_login_opens_a_private_repository(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit(NAME, FILES, token=TOKEN)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN + "\n")
    assert User(hub, tmp_path, HF_HOME=str(tmp_path / "hf")).pin().name == NAME


def test_a_token_that_opens_nothing_appears_in_no_text(
    hub: LoopbackHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.commit(NAME, FILES, token="another", gated=True)
    user = User(hub, tmp_path, HF_TOKEN=TOKEN)
    pinned = user.pin()
    hub.breaks = 1
    with caplog.at_level(logging.DEBUG), pytest.raises(SourceError, match="with the account of your token") as caught:
        user.fetch(pinned)
    kept = "".join(path.read_text() for path in (tmp_path / "forge").rglob("*") if path.is_file())
    assert caught.value.__cause__ is None
    assert TOKEN not in f"{caught.value!r} {caught.value} {caplog.text} {''.join(capfd.readouterr())} {pinned} {kept}"
    assert any(asked.authorization == f"Bearer {TOKEN}" for asked in hub.requests)


def test_a_token_is_told_to_no_other_host(hub: LoopbackHub, tmp_path: Path) -> None:
    """Weights lie with a content network, whose addresses are signed."""
    hub.commit(NAME, FILES, token=TOKEN)
    with lying(lambda turn: turn.say(200, FILES["model.safetensors"])) as other:
        hub.elsewhere = f"http://localhost:{other.port}"
        user = User(hub, tmp_path, HF_TOKEN=TOKEN)
        assert user.fetch(user.pin())["model.safetensors"] == FILES["model.safetensors"]
        assert other.heads
        assert [head for head in other.heads if TOKEN in str(head)] == []


def test_a_hub_that_says_a_token_back_is_not_quoted(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit(NAME, FILES)
    hub.echoes = True
    with pytest.raises(SourceError, match=r"what is Bearer \*\*\*\?") as caught:
        User(hub, tmp_path, HF_TOKEN=TOKEN).pin()
    assert TOKEN not in f"{caught.value!r} {caught.value}"


def test_weights_that_never_end_are_given_up(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, FILES)
    pinned = user.pin()
    hub.endless = 500
    with pytest.raises(SourceError, match="goes on beyond"):
        user.fetch(pinned)
    hub.endless = 0


@pytest.mark.parametrize(
    ("token", "wrong"),
    [
        ("hf_se\N{LATIN SMALL LETTER E WITH ACUTE}cret", "not ASCII"),
        ("hf_se\udcffcret", "not ASCII"),
        ("hf_se cret", "a blank"),
        ("hf_se\tcret", "a blank"),
        ("hf_se\0cret", "a NUL"),
        ("hf_se\x1bcret", "a control character"),
    ],
)
@pytest.mark.parametrize("place", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "file"])
def test_a_token_no_request_can_carry_is_named_by_place(
    hub: LoopbackHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, token: str, wrong: str, place: str
) -> None:
    """Without its text."""
    hub.commit(NAME, FILES)
    file = tmp_path / "hf" / "token"
    file.parent.mkdir()
    if place == "file":
        file.write_bytes(token.encode(errors="surrogateescape") + b"\n")
    user = User(hub, tmp_path, HF_HOME=str(file.parent), **({} if place == "file" else {place: token}))
    with caplog.at_level(logging.DEBUG), pytest.raises(SourceError, match=wrong) as caught:
        user.pin()
    error = caught.value
    assert error.where == (str(file) if place == "file" else place)
    assert place == "file" or place in error.hint
    assert error.hint
    assert error.__cause__ is None
    told = f"{error!r} {error} {caplog.text}"
    assert "cret" not in told
    assert "hf_se" not in told
    assert not hub.requests


def test_a_token_is_read_only_when_the_hub_is_asked(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.commit(NAME, FILES)
    held = User(hub, tmp_path).pin(revision=commit)
    user = User(hub, tmp_path, HF_TOKEN="no token")
    assert user.pin(revision=commit) == held
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        User(hub, tmp_path, HF_TOKEN="no token", HF_HUB_OFFLINE="1").pin(revision="another")
    for ask in (user.pin, lambda: user.fetch(held), lambda: user.origin.tensors(held)):
        with pytest.raises(SourceError, match="token cannot be sent: a blank"):
            ask()


@pytest.mark.parametrize("stated", ["", "  ", "\n"])
def test_a_blank_token_is_none_a_tokens_lines_are_joined(hub: LoopbackHub, tmp_path: Path, stated: str) -> None:
    hub.commit(NAME, FILES, token=TOKEN)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(f" {TOKEN[:5]}\r\n{TOKEN[5:]}\n")
    assert User(hub, tmp_path, HF_TOKEN=stated, HF_HOME=str(tmp_path / "hf")).pin().name == NAME


def test_a_missing_repository_and_a_missing_revision_are_told_apart(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, FILES)
    with pytest.raises(SourceError, match="no such model on the hub, or it is private"):
        user.pin("acme/nothing")
    with pytest.raises(SourceError, match="no revision 'v9'"):
        user.pin(revision="v9")


def test_a_name_that_is_no_model_id_is_refused(user: User) -> None:
    with pytest.raises(SourceError, match="is no model id"):
        user.pin("acme/tiny/too/long")


def test_a_repository_of_ggufs_says_what_to_write_instead(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, {"tiny.Q4_1.gguf": b"GGUF"})
    with pytest.raises(SourceError, match="holds GGUF files"):
        user.pin()


def test_offline_what_is_held_pins_and_reads_without_a_request(hub: LoopbackHub, user: User, tmp_path: Path) -> None:
    hub.commit(NAME, FILES)
    pinned = user.pin()
    user.origin.read(pinned)
    asked = len(hub.requests)
    offline = User(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert offline.pin() == pinned
    assert offline.origin.read(pinned).architectures == ("LlamaForCausalLM",)
    assert len(hub.requests) == asked
    assert "as last seen" in offline.notes[0]


def test_offline_what_is_not_held_fails_naming_the_switch(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.commit(NAME, FILES)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set and acme/tiny is not held"):
        User(hub, tmp_path, HF_HUB_OFFLINE="1").pin()


def test_a_pinned_commit_asks_nobody_a_second_time(hub: LoopbackHub, user: User) -> None:
    commit = hub.commit(NAME, FILES)
    pinned = user.pin(revision=commit)
    asked = len(hub.requests)
    assert user.pin(revision=commit) == pinned
    assert len(hub.requests) == asked


@pytest.mark.slow
def test_a_hub_away_gives_one_error_or_old_answers(tmp_path: Path) -> None:
    with loopback_hub() as hub:
        hub.commit(NAME, FILES)
        user = User(hub, tmp_path)
        pinned = user.pin()
    assert user.pin() == pinned
    assert "out of reach" in user.notes[0]
    with pytest.raises(SourceError, match="out of reach"):
        user.pin("acme/other")


def test_a_model_larger_than_the_disk_is_not_downloaded(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, FILES)
    pinned = user.pin()
    asked = len(hub.requests)
    huge = replace(pinned, files=(replace(pinned.files[0], size=1 << 60),))
    with pytest.raises(StoreError, match="the disk is full: 1,152,921,504,606,846,976 bytes are needed"):
        user.fetch(huge)
    assert len(hub.requests) == asked


def test_a_folder_that_cannot_be_written_to_is_named(hub: LoopbackHub, user: User, tmp_path: Path) -> None:
    hub.commit(NAME, FILES)
    (tmp_path / "model").write_text("a file stands in the way")
    with pytest.raises(StoreError, match="model"):
        user.fetch(user.pin())


def test_a_file_that_comes_short_is_named_not_the_network(hub: LoopbackHub, user: User) -> None:
    hub.commit(NAME, FILES)
    pinned = user.pin()
    hub.swapped["model.safetensors"] = FILES["model.safetensors"][:-50]
    with pytest.raises(SourceError) as error:
        user.fetch(pinned)
    size = len(FILES["model.safetensors"])
    assert error.value.what == f"model.safetensors is shorter than the hub listed ({size - 50} of {size} bytes)"
    assert "run again" in error.value.hint


def test_an_adapter_is_two_files_pinned_apart_from_a_checkpoint(hub: LoopbackHub, user: User, tmp_path: Path) -> None:
    """Some repositories hold both: who asked for the one must not be answered with the other."""
    hub.commit(NAME, {**FILES, **tiny_adapter(4)})
    assert tuple(file.path for file in user.pin().files) == WANTED
    pinned = user.origin.pin(Lora(name="x", hub=NAME), tmp_path)
    assert [file.path for file in pinned.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert user.origin.read(pinned).config["r"] == 4
    assert [tensor.shape for tensor in user.origin.tensors(pinned)] == [(4, 16), (16, 4)]
    assert user.fetch(pinned, "adapter") == tiny_adapter(4)
    assert tuple(file.path for file in user.pin().files) == WANTED
