"""Elements of SVG and HTML, and the style that all pictures share: that of the page of `forge bench`, light and dark."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from xml.etree.ElementTree import Element, tostring


def style(name: str) -> str:
    """What stands in ``name``.css beside this file."""
    return (resources.files("forge.cli.charts") / f"{name}.css").read_text(encoding="utf-8")


def element(tag: str, text: object = "", children: Iterable[Element] = (), **attributes: object) -> Element:
    """``class_`` is class; an underscore is a hyphen (``stroke_width``)."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()})
    made.text = str(text) or None
    made.extend(children)
    return made


def picture(width: float, height: float, title: str, kind: str, children: Iterable[Element]) -> Element:
    """One SVG that carries the style of all and of its ``kind``, so that it is right wherever it is shown."""
    words = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width:g} {height:g}", "role": "img"}
    inside = (element("title", title), element("style", style("chart") + style(kind)), *children)
    return element("svg", "", inside, width=f"{width:g}", height=f"{height:g}", **words)


def page(title: str, parts: Iterable[Element]) -> str:
    """One HTML file; the browser is told to fetch nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    body = "".join(markup(part) for part in parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style('chart')}{style('page')}</style></head>\n<body>{body}</body></html>\n"
    )


def markup(made: Element) -> str:
    """As text; what stands in it is escaped."""
    return tostring(made, encoding="unicode", method="html")


def document(made: Element) -> str:
    """An SVG as a file of its own."""
    return tostring(made, encoding="unicode") + "\n"


def table(rows: Sequence[tuple[str, ...]]) -> Element:
    """The first row is the header."""
    head, *body = rows
    lines = [element("tr", "", [element("td", cell) for cell in row]) for row in body]
    top = element("thead", "", [element("tr", "", [element("th", cell, scope="col") for cell in head])])
    return element(
        "div", "", [element("table", "", [top, element("tbody", "", lines)])], class_="wide", tabindex=0, role="region"
    )


def cut(text: str, most: int) -> str:
    """``text`` with an ellipsis where it is longer than ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
