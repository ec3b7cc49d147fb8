"""Several campaigns beside each other, which share one environment that is made once, and Docker's."""

import argparse
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

from patience import spare
from torture import Campaign, Spent, beside
from torture_docker import InContainers, image_of, why_not
from torture_tally import Tally


def campaigns(given: argparse.Namespace, folder: Path) -> Tally:
    """Run them all, and what they counted together."""
    counted, spent = Tally(), Spent.of(given.minutes * 60, given.kills, folder / "killed")
    first = Campaign(_folder(folder, "home-0"), given.home or folder / "home", Random(given.seed), spare(3), short=given.short)
    first.begin()
    works = [_work(first, spent), *(_work(_copied(first, folder, number), spent) for number in range(1, given.homes))]
    reason = why_not() if given.docker else "it was not asked for"
    if reason:
        print(f"Docker is left out: {reason}", flush=True)
    else:
        archive = image_of(first.home)
        works.append(lambda: InContainers.course(_folder(folder, "docker"), archive, Random(given.seed - 1), spent))
    with ExitStack() as stack:
        running = [stack.enter_context(beside(folder / f"{number}.json", work)) for number, work in enumerate(works)]
        for each in running:
            counted.add(each())
    return counted


def _copied(first: Campaign, folder: Path, number: int) -> Campaign:
    """Another with a home like this one's, in which nothing has happened yet."""
    own = _folder(folder, f"home-{number}")
    shutil.copytree(first.home, own / "home", symlinks=True)
    return Campaign(own, own / "home", Random(first.random.random()), spare(3), short=first.short)


def _work(campaign: Campaign, spent: Spent) -> Callable[[], Tally]:
    def work() -> Tally:
        if not campaign.listed:
            campaign.begin()
        spent.on(campaign)
        if not campaign.misses_a_loss():
            campaign.fault("a model that never was is not missed: this campaign finds nothing")
        return campaign.tally

    return work


def _folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name
