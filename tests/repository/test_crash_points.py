"""A publish that dies, or is refused by the disk, at any of its calls: the next command finds the old or the new, whole."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from crash_points import SWALLOWED, Break, break_off, cut_short, fill_up, kill, refuse, shown
from forge.errors import RepositoryError
from forge.files import trees
from forge.repository import publish
from forge.schema.manifest import PublishedModel
from forge.schema.values import Names, Role, RuntimeKind
from store_makers import child

INSIDE = "/forge/repository"
ROLES = (Role.TENSORRT_LLM, Role.BLS)
Tree = dict[str, str]
Act = Callable[[Path], object]


def relocate(repository: Path) -> publish.Relocate:
    return lambda text: text.replace(INSIDE, str(repository))


def a_model(name: str, prefix: str, version: str) -> PublishedModel:
    entry = f"{name}-{prefix}-{version}"
    return PublishedModel(name=name, prefix=prefix, entry=entry, runtime=RuntimeKind.TWIN, roles=Names(prefix, ROLES).all())


@dataclass(frozen=True)
class Case:
    """One way to change a repository: how it is made before, and the change."""

    before: tuple[tuple[str, str, str], ...]
    """(name, prefix, version) of the models that stand there."""
    coming: tuple[tuple[str, str, str], ...] = ()
    leaving: str = ""
    moved: bool = False


CASES = {
    "first": Case((), (("a", "", "v1"),)),
    "rebuild": Case((("a", "", "v1"),), (("a", "", "v2"),)),
    "second": Case((("a", "a", "v1"),), (("b", "b", "v1"),)),
    "renamed": Case((("a", "", "v1"),), (("a", "a", "v1"), ("b", "b", "v1"))),
    "remove": Case((("a", "a", "v1"), ("b", "b", "v1")), leaving="a"),
    "move": Case((("a", "a", "v1"), ("b", "b", "v1")), moved=True),
}


class Bench:
    """A repository in the state before a change, again and again, and what it is before and after."""

    def __init__(self, root: Path, case: Case) -> None:
        self.case, self.root = case, root
        self.repository, self._template = root / "repository", root / "template"
        first = root / "elsewhere" if case.moved else self.repository
        for stands in case.before:
            self._publish(first, (stands,))
        if case.before:
            first.rename(self._template)
        self.reset()
        self.old = self.seen()
        self.act(self.repository)
        self.new = self.seen()
        assert self.old != self.new
        self.reset()

    def reset(self) -> None:
        shutil.rmtree(self.repository, ignore_errors=True)
        if self._template.exists():
            shutil.copytree(self._template, self.repository, copy_function=os.link)

    def act(self, place: Path) -> None:
        """The change; once more where it has been made already."""
        if self.case.moved:
            publish.settle(place, relocate(place))
        elif self.case.leaving:
            if publish.inventory(place).find(self.case.leaving):
                publish.withdraw(place, self.case.leaving)
        else:
            self._publish(place, self.case.coming)

    def seen(self, place: Path | None = None) -> Tree:
        """All that stands there, but for what is drawn anew each time, and whether files are links or copies."""
        found = shown(place or self.repository)
        found.pop(".forge.lock", None)
        if text := found.get("forge.json"):
            held = json.loads(text)
            found["forge.json"] = json.dumps({**held, "id": ""}).replace('"linked": false', '"linked": true')
        return {path: text for path, text in found.items() if path != "."}

    def folders(self) -> list[Path]:
        """Those of the models that the change is about, old and new, which stand there now."""
        names = {self.case.leaving} if self.case.leaving else {one[0] for one in self.case.coming or self.case.before}
        models = [a_model(*one) for one in (*self.case.before, *self.case.coming) if one[0] in names]
        kinds = ((one.roles.values() if self.case.moved else one.folders) for one in models)  # configs come from assets
        found = {self.repository / folder for folders in kinds for folder in folders}
        return sorted(folder for folder in found if folder.is_dir())

    def _publish(self, place: Path, wanted: tuple[tuple[str, str, str], ...]) -> None:
        models = [a_model(*one) for one in wanted]
        publish.publish_all([(self._entry(model), model) for model in models], place, relocate(place))

    def _entry(self, model: PublishedModel) -> Path:
        out = self.root / "entries" / model.entry
        if not out.exists():
            for folder in model.roles.values():
                (out / folder / "1").mkdir(parents=True)
                (out / folder / "config.pbtxt").write_text(f"{model.entry} {INSIDE}/{model.assets}")
            (out / model.assets).mkdir(parents=True)
            (out / model.assets / "engine").write_text(model.entry)
        return out


def refused(place: Path) -> None:
    with pytest.raises(RepositoryError, match="there is no model"):
        publish.withdraw(place, "nobody")


def quiet(place: Path) -> None:
    with publish.quiet(place):
        pass


NEXT: tuple[Act, ...] = (publish.inventory, publish.found, quiet, refused)
"""What can come next, but for the same again: each reads or writes, and none changes a model."""


def look(bench: Bench, at: int, follow: Act) -> None:
    """The next command finds all of the old or all of the new, and the same change again ends in the new."""
    place = bench.repository
    if place.exists() or follow not in (refused, quiet):
        follow(place)
    seen = bench.seen() if place.exists() else {}
    assert seen in (bench.old, bench.new), (at, follow, difference(seen, bench))
    bench.act(place)
    assert bench.seen() == bench.new, (at, difference(bench.seen(), bench))


def difference(seen: Tree, bench: Bench) -> str:
    sides = {"old": bench.old, "new": bench.new}
    return str(
        {side: sorted(path for path in {*seen, *tree} if seen.get(path) != tree.get(path)) for side, tree in sides.items()}
    )


def killed(bench: Bench) -> None:
    for at, _ in break_off(lambda: bench.act(bench.repository), kill):
        look(bench, at, NEXT[at % len(NEXT)])
        bench.reset()


def killed_without_exchange(bench: Bench) -> None:
    trees.exchange = lambda one, other: False
    for at, _ in break_off(lambda: bench.act(bench.repository), kill):
        look(bench, at, NEXT[at % len(NEXT)])
        bench.reset()


def refused_once(bench: Bench) -> None:
    _hindered(bench, refuse(errno.EIO))


def no_room_once(bench: Bench) -> None:
    _hindered(bench, refuse(errno.ENOSPC))


def no_permission_once(bench: Bench) -> None:
    _hindered(bench, refuse(errno.EACCES))


def cut_short_once(bench: Bench) -> None:
    _hindered(bench, cut_short)


def _hindered(bench: Bench, happens: Break) -> None:
    """Each refusal is told, or it did not matter: then all of the new is there already."""
    for at, ended in break_off(lambda: bench.act(bench.repository), happens):
        if ended == SWALLOWED:
            assert visible(bench.seen()) == visible(bench.new), (at, difference(bench.seen(), bench))
        look(bench, at, NEXT[at % len(NEXT)])
        bench.reset()


def visible(tree: Tree) -> Tree:
    """Without what waits for the next command to clear it up."""
    return {path: text for path, text in tree.items() if not path.startswith(".forge") and Path(path).name != ".forge-publish"}


def refused_from_then_on(bench: Bench) -> None:
    for at, _ in break_off(lambda: bench.act(bench.repository), refuse(errno.EIO), lasting=True):
        look(bench, at, NEXT[at % len(NEXT)])
        bench.reset()


def disk_full(bench: Bench) -> None:
    """Nothing has to come next: what was begun needs no room to be finished."""
    for at, ended in break_off(lambda: bench.act(bench.repository), fill_up, lasting=True):
        seen = bench.seen() if bench.repository.exists() else {}
        assert seen in (bench.old, bench.new), (at, ended, difference(seen, bench))
        bench.reset()


def moved_away(bench: Bench) -> None:
    """Somebody moves a folder away: it is theirs from then on, and no command stumbles over it."""
    away = bench.root / "away"
    for at, _ in break_off(lambda: bench.act(bench.repository), kill):
        place, there = bench.repository, bench.folders()
        if there:
            name = there[at % len(there)].relative_to(place)
            (place / name).rename(away)
            taken = shown(away)
            NEXT[at % len(NEXT)](place)
            assert not (place / ".forge").exists(), (at, name)
            bench.act(place)
            assert shown(away) == taken
            wrong = {path for path in {*bench.seen(), *bench.new} if bench.seen().get(path) != bench.new.get(path)}
            if bench.case.moved:  # settling makes no folder anew
                wrong = {path for path in wrong if not path.startswith(str(name))}
            assert not wrong, (at, name, wrong)
            shutil.rmtree(away)
        bench.reset()


def copied(bench: Bench) -> None:
    """A copy is finished or undone like what it was copied from, and apart from it."""
    other = bench.root / "copy"
    for at, _ in break_off(lambda: bench.act(bench.repository), kill):
        if bench.repository.exists():
            shutil.copytree(bench.repository, other, symlinks=True)
            publish.inventory(other)
            assert bench.seen(other) in (bench.old, bench.new), (at, difference(bench.seen(other), bench))
            publish.settle(other, relocate(other))
            bench.act(other)
            place = str(bench.repository)
            new = {path: text.replace(place, str(other)) for path, text in bench.new.items()}
            assert bench.seen(other) == new, at
            shutil.rmtree(other)
        look(bench, at, publish.inventory)
        bench.reset()


Way = Callable[[Bench], None]


PUBLISHES = ("first", "second", "renamed")
WAYS: dict[Way, tuple[str, ...]] = {
    killed: tuple(CASES),
    killed_without_exchange: ("rebuild",),
    refused_once: tuple(CASES),
    no_room_once: PUBLISHES,
    no_permission_once: PUBLISHES,
    cut_short_once: (*PUBLISHES, "move"),
    refused_from_then_on: ("rebuild", "remove"),
    disk_full: ("rebuild", "remove", "move"),
    moved_away: ("first", "rebuild", "remove", "move"),
    copied: ("rebuild",),
}
"""Where each way of breaking off is looked at; all of them everywhere hold too, and take minutes."""

RUN = """
import sys
from pathlib import Path
import test_crash_points as t
from store_makers import room
with room(Path(sys.argv[3])) as root:
    getattr(t, sys.argv[1])(t.Bench(root, t.CASES[sys.argv[2]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("way", "case"), [(way.__name__, case) for way, cases in WAYS.items() for case in cases])
def test_a_publish_broken_anywhere_leaves_the_old_or_new(tmp_path: Path, way: str, case: str) -> None:
    process = child(RUN, way, case, tmp_path)
    said, errors = process.communicate()
    assert process.returncode == 0, said + errors
