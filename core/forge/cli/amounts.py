"""Numbers with a unit on the command line: sizes, times and shares."""

import re

import click

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
TIMES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class Amount(click.ParamType[int]):
    """A number with a unit, as 20GB or 30d."""

    def __init__(self, name: str, pattern: str, units: dict[str, int]) -> None:
        self.name = name
        self._pattern = pattern
        self._units = units

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(self._pattern, str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no {self.name}; write it like 20GB or 30d", param, ctx)
        return int(float(match[1]) * self._units[match[2]])


SIZE = Amount("size", r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", UNITS)
AGE = Amount("age", r"(\d+(?:\.\d+)?)\s*([smhdw])", TIMES)


class Every(click.ParamType[float]):
    """A time with a unit, in seconds; 0 for ``off``."""

    name = "age"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return 0.0 if str(value) == "off" else float(AGE.convert(value, param, ctx))


EVERY = Every()


class Share(click.ParamType[float]):
    """A part of the whole: 10%."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip().removesuffix("%")
        if not str(value).strip().endswith("%") or not text.replace(".", "", 1).isdigit() or not 0 < float(text) <= 100:
            self.fail(f"{value!r} is no share; write it like 10%", param, ctx)
        return float(text) / 100


SHARE = Share()
