"""Checkpoints from a git repository whose weights are kept by LFS, pinned to a commit and checked byte for byte.

Nothing is checked out. Trees and small files come by a shallow fetch that leaves large ones out; what a build needs is taken
from git's objects and from LFS's. So no filter, hook, link or path of a stranger's repository gets to act.
"""

import re
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import msgspec

from forge.build.sources.checkpoint_files import CONFIGS, POINTER, POINTER_LIMIT, apart, check, selected, stated
from forge.build.sources.git_commands import Git, address, no_lfs
from forge.build.sources.lookups import COMMIT, checkpoint, latest, make, named, recall, record, require_room
from forge.errors import SourceError
from forge.events import Progress
from forge.files import copies, trees
from forge.files.safetensors import Tensor
from forge.machine.bonds import temporary
from forge.machine.interrupt import Halt
from forge.schema.values import Checkpoint, FileFact, Pinned, Source, SourceKind

_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][^\x00-\x20\x7f~^:?*\[\\]*")  # git-check-ref-format(1), and no option
_POINTED = re.compile(rb"^oid sha256:(?P<oid>[0-9a-f]{64})$.*^size (?P<size>\d+)$", re.MULTILINE | re.DOTALL)
_REGULAR = ("100644", "100755")


class GitOrigin:
    """Pins, reads and fetches with the programs git and git-lfs, by whatever access the user's own git has.

    ``home`` keeps what was learnt: pins by what was asked, and config.json by digest, so that a build whose steps are held
    goes on without a network.
    """

    def __init__(
        self,
        home: Path,
        environ: Mapping[str, str],
        note: Callable[[str], None] = lambda _: None,
        halt: Halt | None = None,
    ) -> None:
        self._halt = halt
        self._home = home / "git"
        self._configs = self._home / "configs"
        self._environ = environ
        self._note = note

    def pin(self, source: Source, base: Path) -> Pinned:
        """The commit behind ``source.revision`` and its needed files; a commit that was pinned before asks nobody.

        Out of reach, the last answer for the same question holds, and is said aloud.
        """
        del base
        url = address(source.address)
        if not _REVISION.fullmatch(source.revision):
            raise SourceError(f"{source.revision!r} is no branch, tag or commit", where=url)
        asked = msgspec.json.encode((url, source.revision, source.allow_pickle, *apart(source)))
        return latest(self._home / "pins", asked, source, lambda: self._now(url, source), self._note)

    def _now(self, url: str, source: Source) -> Pinned:
        with self._scratch(url) as git:
            return self._look(git, _commit(git, source.revision), source)

    def read(self, pinned: Pinned) -> Checkpoint:
        """config.json, or an adapter's, at the pinned commit; kept, so that it is asked for once."""
        fact = stated(pinned)
        question = named(fact, fact.path).encode()
        text = recall(self._configs, question, bytes)
        if text is None:
            self._home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._home, prefix=".read-") as folder:
                self._bring(pinned, (fact,), Path(folder), lambda _done, _total: None)
                text = (Path(folder) / fact.path).read_bytes()
            record(self._configs, question, text)
        return checkpoint(text, f"{pinned.name}@{pinned.revision[:12]}/{fact.path}")

    def tensors(self, pinned: Pinned) -> tuple[Tensor, ...]:
        """Empty: LFS gives whole files only, and config.json says them for most families."""
        del pinned
        return ()

    def fetch(self, pinned: Pinned, into: Path, progress: Progress) -> None:
        self._bring(pinned, pinned.files, into, progress)

    def cost(self, pinned: Pinned, into: Path) -> copies.Cost | None:
        """Of a repository on this machine what a fetch into ``into`` would write: all but those of LFS's objects that can share
        blocks (reflink). git keeps the others packed."""
        if not pinned.name.startswith("file:"):
            return None
        size = sum(fact.size for fact in pinned.files)
        theirs = [(each, fact.size) for fact in pinned.files for each in _theirs(pinned.name, fact) if each.is_file()]
        sharing = sum(size for _, size in theirs) - copies.written(theirs, into)
        return copies.Cost(size, size - sharing)

    def _look(self, git: Git, commit: str, source: Source) -> Pinned:
        where = f"{git.url}@{commit[:12]}"
        blobs = _tree(git, commit)
        wanted = selected(source, blobs, where)
        sizes = _sizes(git, commit, [blobs[name] for name in wanted])
        files: list[FileFact] = []
        for name in wanted:
            oid = blobs[name]
            content = git.ask("cat-file", "blob", oid) if name in CONFIGS or sizes[oid] <= POINTER_LIMIT else b""
            if content.startswith(POINTER):
                files.append(_pointed(name, content, where))
                continue
            files.append(FileFact(name, sizes[oid], f"gitsha1:{oid}"))
            if name in CONFIGS:
                record(self._configs, named(files[-1], name).encode(), content)
        return Pinned(SourceKind.GIT, git.url, commit, tuple(files))

    def _bring(self, pinned: Pinned, facts: tuple[FileFact, ...], into: Path, progress: Progress) -> None:
        where = f"{pinned.name}@{pinned.revision[:12]}"
        total, done = sum(fact.size for fact in facts), 0
        large = [fact for fact in facts if fact.digest.startswith("sha256:")]
        require_room(total, into)
        # Beside the result: on the same disk, so that gigabytes are moved and not copied.
        with self._scratch(pinned.name, beside=into) as git:
            blobs = _tree(git, pinned.revision)
            if lost := [fact.path for fact in facts if fact.path not in blobs]:
                hint = "move the lock with `forge lock RECIPE --upgrade`"
                raise SourceError(f"a pinned file is not in this commit: {lost[0]}", where=where, hint=hint)
            _sizes(git, pinned.revision, [blobs[fact.path] for fact in facts])
            make(into)
            for fact in facts:
                make((into / fact.path).parent)
                if fact not in large:
                    with (into / fact.path).open("xb") as file:
                        git.run("cat-file", "blob", blobs[fact.path], out=file)
                    progress(done := done + fact.size, total)
            if large:
                small = done
                pointers = {fact.path: blobs[fact.path] for fact in large}
                _fetch_large(git, pinned.revision, pointers, lambda here: progress(min(small + here, total), total))
                _take(git, large, into, where)
        for fact in facts:
            check(into / fact.path, fact, where)
        progress(total, total)

    @contextmanager
    def _scratch(self, url: str, beside: Path | None = None) -> Generator[Git]:
        """An empty repository that knows ``url`` as its origin, gone afterwards."""
        if beside is not None:
            make(beside.parent)
        with tempfile.TemporaryDirectory(prefix=".forge-git-", dir=beside.parent if beside else temporary()) as folder:
            git = Git(Path(folder) / "repository", url, self._environ, self._halt)
            git.init()
            yield git


def _commit(git: Git, revision: str) -> str:
    """The commit that a branch or tag stands for now; a tag comes before a branch of its name (gitrevisions(7))."""
    if COMMIT.fullmatch(revision):
        return revision
    names = [f"refs/tags/{revision}^{{}}", f"refs/tags/{revision}", f"refs/heads/{revision}"]
    answer = git.ask("ls-remote", "--quiet", "--end-of-options", "origin", *names, "HEAD").decode("utf-8", "replace")
    found = {name: commit for commit, _, name in (line.partition("\t") for line in answer.splitlines())}
    for name in (*names, *(["HEAD"] if revision == "HEAD" else [])):
        if name in found:
            return found[name]
    hint = "write a branch, a tag, or all 40 characters of a commit; `git ls-remote URL` lists them"
    raise SourceError(f"there is no revision {revision!r}", where=git.url, hint=hint)


def _tree(git: Git, commit: str) -> dict[str, str]:
    """The commit's plain files and their git ids, by path; links and submodules are none, nor is what is not UTF-8.

    Of the files, the fetch brings only those that are small enough to be pointers.
    """
    if not COMMIT.fullmatch(commit):
        raise SourceError(f"{commit!r} is no commit", where=git.url)
    small = f"--filter=blob:limit={POINTER_LIMIT + 1}"
    git.run("fetch", "--quiet", "--depth=1", "--no-tags", small, "origin", commit)
    found: dict[str, str] = {}
    for line in git.ask("ls-tree", "-r", "-z", commit).split(b"\0")[:-1]:
        about, _, name = line.partition(b"\t")
        mode, _, oid = about.decode().split(" ")
        with suppress(UnicodeDecodeError):
            if mode in _REGULAR:
                found[name.decode()] = oid
    return found


def _sizes(git: Git, commit: str, oids: list[str]) -> dict[str, int]:
    """Bytes of each blob; those that the first fetch left out are brought now, all at once."""
    listed = git.ask("rev-list", "--objects", "--missing=print", "--no-walk", commit).decode().splitlines()
    missing = {line[1:] for line in listed if line.startswith("?")}.intersection(oids)
    if missing:
        git.run("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--filter=blob:none", "origin", *sorted(missing))
    answer = git.ask("cat-file", "--batch-check=%(objectname) %(objectsize)", told="".join(f"{oid}\n" for oid in oids).encode())
    return {oid: int(size) for oid, _, size in (line.partition(" ") for line in answer.decode().splitlines())}


def _pointed(name: str, pointer: bytes, where: str) -> FileFact:
    match = _POINTED.search(pointer)
    if match is None:
        raise SourceError(f"{name} is a git-lfs pointer that cannot be read", where=where, hint="tell who keeps the repository")
    return FileFact(name, int(match["size"]), f"sha256:{match['oid'].decode()}")


def _fetch_large(git: Git, commit: str, oids: Mapping[str, str], done: Callable[[int], None]) -> None:
    """Bring LFS's objects for these pointers into the scratch repository.

    git-lfs works on commits, and would look at (so fetch) every file of one: it is given a commit of these files only.
    """
    try:
        git.ask("lfs", "version")
    except SourceError as error:
        raise no_lfs(git.url) from error
    # In one folder, whatever folders the files are in: only what is in the pointers counts.
    entries = "".join(f"100644 blob {oid}\t{number}\0" for number, oid in enumerate(dict.fromkeys(oids.values())))
    tree = git.ask("mktree", "-z", told=entries.encode()).decode().strip()
    only = git.ask("commit-tree", "-m", "what a build needs", tree).decode().strip()
    if server := _lfs_server(git, commit):
        git.ask("config", "lfs.url", server)
    git.run("lfs", "fetch", "origin", only, watch=lambda: done(trees.size_below(git.folder / "lfs")))


def _lfs_server(git: Git, commit: str) -> str:
    """Where the repository itself says that its LFS objects are (.lfsconfig); empty where it says nothing."""
    listed = git.ask("ls-tree", commit, "--", ".lfsconfig").split()
    if not listed or listed[0].decode() not in _REGULAR:
        return ""
    stated = git.ask("config", "--blob", listed[2].decode(), "--default", "", "--get", "lfs.url").decode().strip()
    server = address(stated) if stated else ""
    if server.startswith("file:") and not git.url.startswith("file:"):
        raise SourceError(f"its .lfsconfig names a place on this machine: {server}", where=git.url)
    return server


def _take(git: Git, large: list[FileFact], into: Path, where: str) -> None:
    """Move LFS's objects to their files' names; SourceError names those that are still pointers.

    git-lfs hard-links what it has from a repository on this machine: such an object is somebody's own, and is copied.
    """
    objects = {fact.path: git.folder / _stored(fact.digest.partition(":")[2]) for fact in large}
    if left := [path for path, original in objects.items() if not original.is_file()]:
        what = f"git-lfs brought no bytes for {', '.join(left)}: only pointers are there"
        raise SourceError(what, where=where, hint="the repository's LFS store lacks them; take another revision or source")
    for path, original in objects.items():
        last = sum(each == original for each in objects.values()) == 1
        if last and original.stat().st_nlink == 1:
            original.rename(into / path)
        else:
            copies.copy(original, into / path)


def _theirs(url: str, fact: FileFact) -> Iterator[Path]:
    """Where a repository on this machine, bare or not, keeps LFS's object of a file; nothing for one that git itself keeps."""
    kind, _, oid = fact.digest.partition(":")
    folder = Path(unquote(url.removeprefix("file://")))
    if kind == "sha256":
        yield (folder / ".git" if (folder / ".git").is_dir() else folder) / _stored(oid)


def _stored(oid: str) -> Path:
    return Path("lfs", "objects", oid[:2], oid[2:4], oid)
