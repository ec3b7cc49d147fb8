"""A git repository with LFS as a source, against bare repositories on this machine."""

import os
import shutil
from pathlib import Path

import pytest

from checkpoints import CONFIG, safetensors
from fakes import tiny_adapter
from forge.api.forge import Forge
from forge.build.sources.git import GitOrigin
from forge.build.sources.git_commands import Git, address, meaning, redacted
from forge.errors import ForgeError, HostError, SourceError, StoreError
from forge.machine.processes import started
from forge.schema.recipe import Lora
from forge.schema.values import Pinned, Source, SourceKind
from git_kit import HAS_GIT, Remote, needs_lfs
from patience import soon

needs_git = pytest.mark.skipif(not HAS_GIT, reason="git is not installed")

FILES = {
    "config.json": CONFIG,
    "tokenizer.json": b"{}" + b" " * 5000,
    "model.safetensors": safetensors(),
    "pytorch_model.bin": b"pickle",
    "picture.png": bytes(300_000),
    "onnx/model.onnx": b"the same again",
}
WANTED = ("config.json", "model.safetensors", "tokenizer.json")


class User:
    """Somebody with a home folder, and git as the machine has it."""

    def __init__(self, home: Path, **environ: str) -> None:
        self.notes: list[str] = []
        self.home = home / "forge"
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.origin = GitOrigin(self.home, {**kept, "GIT_CONFIG_GLOBAL": str(home / "none"), **environ}, self.notes.append)
        self._folder = home

    def pin(self, url: str, revision: str = "main", allow_pickle: bool = False) -> Pinned:
        return self.origin.pin(Source(git=url, revision=revision, allow_pickle=allow_pickle), self._folder)

    def fetch(self, pinned: Pinned, folder: str = "model") -> dict[str, bytes]:
        into = self._folder / "staging" / folder
        self.seen: list[tuple[int, int]] = []
        self.origin.fetch(pinned, into, lambda done, total: self.seen.append((done, total)))
        assert [path.name for path in into.parent.iterdir() if path.name.startswith(".")] == []
        return {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    (tmp_path / "theirs").mkdir()
    return Remote(tmp_path / "theirs", lfs=True)


@pytest.fixture
def plain(tmp_path: Path) -> Remote:
    """A repository that keeps its weights in git itself."""
    (tmp_path / "theirs").mkdir()
    return Remote(tmp_path / "theirs", lfs=False)


@needs_lfs
def test_a_pin_names_commit_and_files_without_fetching_weights(remote: Remote, user: User) -> None:
    commit = remote.commit(FILES)
    for lost in remote.large:
        lost.unlink()
    pinned = user.pin(remote.url)
    assert (pinned.kind, pinned.name, pinned.revision) == (SourceKind.GIT, remote.url, commit)
    assert tuple(file.path for file in pinned.files) == WANTED
    assert [file.size for file in pinned.files] == [len(FILES[path]) for path in WANTED]
    assert [file.digest.partition(":")[0] for file in pinned.files] == ["gitsha1", "sha256", "gitsha1"]
    assert user.origin.read(pinned).architectures == ("LlamaForCausalLM",)


@needs_lfs
def test_a_fetch_brings_the_pinned_files_and_nothing_else(remote: Remote, user: User) -> None:
    remote.commit(FILES)
    assert user.fetch(user.pin(remote.url)) == {path: FILES[path] for path in WANTED}
    total = sum(len(FILES[path]) for path in WANTED)
    assert user.seen[-1] == (total, total)
    assert [done for done, _ in user.seen] == sorted(done for done, _ in user.seen)


@needs_lfs
def test_a_fetch_brings_what_was_pinned_after_the_branch_moved(remote: Remote, user: User) -> None:
    remote.commit(FILES)
    before = user.pin(remote.url)
    remote.commit({"model.safetensors": safetensors(fill=2)})
    assert user.fetch(before)["model.safetensors"] == safetensors(fill=1)
    after = user.pin(remote.url)
    assert after.revision != before.revision
    assert user.fetch(after, "second")["model.safetensors"] == safetensors(fill=2)


@needs_lfs
def test_two_files_of_the_same_bytes_are_both_brought(remote: Remote, user: User) -> None:
    remote.commit({"config.json": CONFIG, "a.safetensors": safetensors(), "b.safetensors": safetensors()})
    brought = user.fetch(user.pin(remote.url))
    assert brought["a.safetensors"] == brought["b.safetensors"] == safetensors()


@needs_lfs
def test_a_config_that_lfs_keeps_is_read_too(remote: Remote, user: User) -> None:
    remote.git("lfs", "track", "*.json")
    (remote.bare.parent / "work" / ".gitattributes").unlink()
    attributes = b"*.safetensors filter=lfs -text\n*.json filter=lfs -text\n"
    remote.commit({"config.json": CONFIG, "model.safetensors": safetensors()})
    remote.git("rm", "-q", "--cached", "config.json")
    (remote.bare.parent / "work" / ".gitattributes").write_bytes(attributes)
    remote.push()
    pinned = user.pin(remote.url)
    assert [file.digest.partition(":")[0] for file in pinned.files] == ["sha256", "sha256"]
    assert user.origin.read(pinned).architectures == ("LlamaForCausalLM",)
    assert user.fetch(pinned)["config.json"] == CONFIG


@needs_git
def test_weights_in_git_itself_are_pinned_by_gits_own_digest(plain: Remote, user: User) -> None:
    plain.commit(FILES)
    pinned = user.pin(plain.url)
    assert {file.digest.partition(":")[0] for file in pinned.files} == {"gitsha1"}
    assert user.fetch(pinned) == {path: FILES[path] for path in WANTED}


@needs_git
def test_a_remote_that_filters_nothing_does_as_well(plain: Remote, user: User) -> None:
    plain.commit(FILES)
    plain.git("config", "uploadpack.allowFilter", "false", cwd=plain.bare)
    assert user.fetch(user.pin(plain.url)) == {path: FILES[path] for path in WANTED}


@needs_git
def test_a_tag_a_branch_and_a_commit_name_the_same(plain: Remote, user: User) -> None:
    commit = plain.commit(FILES, tag="v1.0")
    assert {user.pin(plain.url, revision).revision for revision in ("v1.0", "main", commit, "HEAD")} == {commit}


@needs_git
def test_a_pinned_commit_and_its_config_are_asked_once(plain: Remote, user: User, tmp_path: Path) -> None:
    commit = plain.commit(FILES)
    pinned = user.pin(plain.url, commit)
    shutil.rmtree(plain.bare)
    assert user.pin(plain.url, commit) == pinned
    assert user.origin.read(pinned).architectures == ("LlamaForCausalLM",)


@needs_git
def test_gits_own_variables_lead_nowhere_and_trace_nothing(plain: Remote, tmp_path: Path) -> None:
    """A hook of git's says in them where its repository is."""
    plain.commit(FILES)
    (tmp_path / "elsewhere").mkdir()
    places = dict.fromkeys(("GIT_DIR", "GIT_OBJECT_DIRECTORY", "GIT_WORK_TREE"), str(tmp_path / "elsewhere"))
    user = User(tmp_path, GIT_TRACE=str(tmp_path / "trace"), **places)
    assert set(user.fetch(user.pin(plain.url))) == set(WANTED)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert not (tmp_path / "trace").exists()


@needs_git
def test_another_machines_lock_is_enough_to_read_and_fetch(plain: Remote, user: User, tmp_path: Path) -> None:
    plain.commit(FILES)
    pinned = user.pin(plain.url)
    (tmp_path / "elsewhere").mkdir()
    other = User(tmp_path / "elsewhere")
    assert other.origin.read(pinned).architectures == ("LlamaForCausalLM",)
    assert set(other.fetch(pinned)) == set(WANTED)


@needs_git
def test_a_branch_out_of_reach_is_taken_as_last_seen(plain: Remote, tmp_path: Path) -> None:
    """And said aloud."""
    plain.commit(FILES)
    gone = "https://127.0.0.1:9/acme/tiny.git"
    (tmp_path / "settings").write_text(f'[url "{plain.url}"]\n\tinsteadOf = {gone}\n')
    reaching = User(tmp_path, GIT_CONFIG_GLOBAL=str(tmp_path / "settings"))
    pinned = reaching.pin(gone)
    cut = User(tmp_path)
    assert cut.pin(gone) == pinned
    assert "out of reach" in cut.notes[0]
    assert "as last seen" in cut.notes[0]
    with pytest.raises(SourceError, match="out of reach"):
        cut.pin(gone, "another")


@needs_git
def test_a_missing_repository_and_revision_are_told_apart(plain: Remote, user: User, tmp_path: Path) -> None:
    plain.commit(FILES)
    with pytest.raises(SourceError, match=r"(?s)no such repository.*does not appear to be a git repository"):
        user.pin((tmp_path / "nothing").as_uri())
    with pytest.raises(SourceError, match="no revision 'v9'"):
        user.pin(plain.url, "v9")
    with pytest.raises(SourceError, match=r"(?s)no such revision.*not our ref"):
        user.pin(plain.url, "0" * 40)


@needs_git
def test_pickled_weights_are_refused_until_the_recipe_allows_them(plain: Remote, user: User) -> None:
    plain.commit({"config.json": CONFIG, "pytorch_model.bin": b"pickle"})
    with pytest.raises(SourceError, match="pickled"):
        user.pin(plain.url)
    assert [file.path for file in user.pin(plain.url, allow_pickle=True).files] == ["config.json", "pytorch_model.bin"]


@needs_git
def test_a_link_in_a_repository_is_no_checkpoint_file(plain: Remote, user: User) -> None:
    plain.commit(FILES)
    plain.link("tokenizer.json", "/etc/passwd")
    plain.push()
    assert "tokenizer.json" not in user.fetch(user.pin(plain.url))


@needs_lfs
def test_an_object_that_the_lfs_store_lacks_is_named(remote: Remote, user: User, tmp_path: Path) -> None:
    remote.commit(FILES)
    pinned = user.pin(remote.url)
    for lost in remote.large:
        lost.unlink()
    with pytest.raises(SourceError, match=r"(?s)LFS store lacks.*missing object"):
        user.fetch(pinned)
    assert [path.name for path in (tmp_path / "staging").iterdir() if path.name.startswith(".")] == []


@needs_lfs
def test_an_object_of_other_bytes_is_found(remote: Remote, user: User) -> None:
    remote.commit(FILES)
    pinned = user.pin(remote.url)
    for path in remote.large:
        path.chmod(0o644)
        path.write_bytes(safetensors(fill=9))
    with pytest.raises(SourceError):
        user.fetch(pinned)


@needs_lfs
def test_truncated_weights_are_named(remote: Remote, user: User) -> None:
    remote.commit({"config.json": CONFIG, "model.safetensors": safetensors()[:-10]})
    with pytest.raises(SourceError, match=r"model\.safetensors: truncated: its header promises"):
        user.fetch(user.pin(remote.url))


@needs_lfs
def test_a_fetch_leaves_the_remotes_own_files_as_they_were(remote: Remote, user: User, tmp_path: Path) -> None:
    remote.commit(FILES)
    before = {path: (path.stat().st_mode, path.read_bytes()) for path in remote.large}
    user.fetch(user.pin(remote.url))
    assert {path: (path.stat().st_mode, path.read_bytes()) for path in remote.large} == before


@needs_git
def test_without_git_lfs_the_error_says_how_to_get_it(plain: Remote, tmp_path: Path) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 20000\n".encode()
    plain.commit({"config.json": CONFIG, "model.safetensors": text})
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "git").symlink_to(shutil.which("git") or "")
    (programs / "git-lfs").write_text("#!/bin/sh\nexit 127\n")
    (programs / "git-lfs").chmod(0o755)
    exec_path = tmp_path / "exec"
    shutil.copytree(plain.git("--exec-path"), exec_path, symlinks=True, ignore=shutil.ignore_patterns("git-lfs"))
    user = User(tmp_path, PATH=f"{programs}:{os.environ['PATH']}", GIT_EXEC_PATH=str(exec_path))
    pinned = user.pin(plain.url)
    assert [file.size for file in pinned.files] == [len(CONFIG), 20000]
    with pytest.raises(HostError, match=r"(?s)git-lfs, which is not installed.*apt install git-lfs"):
        user.fetch(pinned)


def test_without_git_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="apt install git"):
        User(tmp_path, PATH=str(tmp_path)).pin("https://example.org/acme/tiny.git")


@pytest.mark.parametrize(
    "text",
    [
        "ext::sh -c touch% /tmp/owned",
        "ext::https://example.org/x",
        "--upload-pack=touch /tmp/owned",
        "-u",
        "fd::17/foo",
        "http://example.org/tiny.git",
        "git://example.org/tiny.git",
        "ftp://example.org/tiny.git",
        "file://host/tiny.git",
        "ssh://-oProxyCommand=touch/tiny.git",
        "ssh://-oProxyCommand=touch@host/tiny.git",
        "git@-oProxyCommand=touch:tiny.git",
        "git@host:-oProxyCommand=touch",
        "https://example.org",
        "https://example.org/a\nb",
        "tiny.git",
        "",
    ],
)
def test_what_is_no_plain_address_is_never_given_to_git(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceError, match="no address that forge gives to git"):
        User(tmp_path, PATH=str(tmp_path)).pin(text)


@pytest.mark.parametrize("revision", ["--upload-pack=touch /tmp/owned", "-h", "a b", "main*", "a..b", ""])
def test_what_is_no_plain_revision_is_never_given_to_git(tmp_path: Path, revision: str) -> None:
    with pytest.raises(SourceError, match="no branch, tag or commit"):
        User(tmp_path, PATH=str(tmp_path)).pin("https://example.org/acme/tiny.git", revision)


def test_a_url_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="credential helper") as caught:
        User(tmp_path, PATH=str(tmp_path)).pin("https://me:s3cret@example.org/acme/tiny.git")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(SourceError) as caught:
        address("https://me:s3@cr/et@example.org/acme/tiny.git")
    assert "cr/et" not in str(caught.value)


def test_the_user_of_a_url_stays_out_of_the_pin() -> None:
    """It may be a token."""
    assert address("https://ghp_token@example.org/acme/tiny.git") == "https://example.org/acme/tiny.git"
    assert address("ssh://git@example.org:22/acme/tiny.git") == "ssh://git@example.org:22/acme/tiny.git"
    assert address("git@example.org:acme/tiny.git") == "git@example.org:acme/tiny.git"


@needs_git
def test_a_token_that_git_settings_put_in_stays_hidden(tmp_path: Path) -> None:
    """In the URL, and so in git's errors."""
    asked = "https://127.0.0.1:9/acme/tiny.git"
    settings = tmp_path / "settings"
    settings.write_text('[url "https://me:s3cret@127.0.0.1:9/"]\n\tinsteadOf = https://127.0.0.1:9/\n')
    user = User(tmp_path, GIT_CONFIG_GLOBAL=str(settings), GIT_TRACE="1", GIT_CURL_VERBOSE="1")
    with pytest.raises(SourceError, match="out of reach") as caught:
        user.pin(asked)
    assert "s3cret" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert redacted("fatal: unable to access 'https://a:b@c/d/': no") == "fatal: unable to access 'https://***@c/d/': no"


def test_a_git_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    (tmp_path / "git").write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {tmp_path}/pid\nwait\n")
    (tmp_path / "git").chmod(0o755)
    git = Git(tmp_path / "repository", "https://example.org/tiny.git", {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    with pytest.raises(SourceError, match="no answer"):
        git.run("fetch", patience=1.0)
    pid = int((tmp_path / "pid").read_text())
    assert soon(lambda: started(pid) is None)


WORDS = [
    ("fatal: could not read Username for 'https://github.com': terminal prompts disabled", SourceError, "not let in"),
    ("git@github.com: Permission denied (publickey).", SourceError, "not let in"),
    ("fatal: unable to access 'https://x/': Could not resolve host: x", SourceError, "out of reach"),
    ("remote: Repository not found.", SourceError, "no such repository"),
    ("fatal: write error: No space left on device", StoreError, "disk is full"),
    ("fatal: something new", SourceError, "git fetch failed\n    fatal: something new"),
]


@pytest.mark.parametrize(("words", "kind", "said"), WORDS)
def test_gits_last_words_are_explained_and_shown(words: str, kind: type[ForgeError], said: str) -> None:
    error = meaning(["hint: advice", words], "https://x/y", "fetch")
    assert type(error) is kind or (kind is SourceError and isinstance(error, SourceError))
    assert said in str(error)
    assert words in str(error)


@needs_git
def test_a_git_url_becomes_a_recipe_that_can_be_planned(plain: Remote, tmp_path: Path) -> None:
    commit = plain.commit(FILES)
    shop = Forge(tmp_path / "home", dict(os.environ))
    recipe = tmp_path / "tiny.toml"
    drafted = shop.draft(plain.url)
    recipe.write_text(drafted.replace('kind = "engine"', 'kind = "twin"'))
    assert shop.read(recipe).source == Source(git=plain.url)
    assert shop.read(recipe).name == "remote"
    assert shop.resolve(recipe).facts.source.revision == commit
    assert shop.draft(str(plain.bare)) == drafted
    shop.lock(recipe)
    shutil.rmtree(plain.bare)
    assert shop.resolve(recipe).facts.source.revision == commit


@needs_git
def test_an_adapter_is_two_files_pinned_apart_from_a_checkpoint(plain: Remote, user: User, tmp_path: Path) -> None:
    plain.commit({"config.json": CONFIG, "model.safetensors": safetensors(), **tiny_adapter(4)})
    assert [file.path for file in user.pin(plain.url).files] == ["config.json", "model.safetensors"]
    pinned = user.origin.pin(Lora(name="x", git=plain.url), tmp_path)
    assert user.origin.read(pinned).config["r"] == 4
    assert user.fetch(pinned, "adapter") == tiny_adapter(4)
    assert [file.path for file in user.pin(plain.url).files] == ["config.json", "model.safetensors"]
