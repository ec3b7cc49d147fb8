"""Elements of SVG and HTML, and the style that all pictures share: that of the page of `forge bench`, light and dark."""

from collections.abc import Iterable, Sequence
from html import escape
from xml.etree.ElementTree import Element, tostring

STYLE = """
svg, body { --ground: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --soft: #566069; --rule: #c6ccd3; --way: #b4651a;
  --here: #2f7d4f; --away: #2b6cb0; --made: #b4651a; --none: #8c959f; --bad: #b3261e;
  --weights: #1f5f9e; --draft: #4f88bf; --adapters: #86afd6; --work: #8b95a1; --cache: #e9a54b; --taken: #c6ccd3; }
@media (prefers-color-scheme: dark) {
  svg, body { --ground: #12151a; --card: #1a1f26; --ink: #e4e8ec; --soft: #9da8b3; --rule: #3a434e; --way: #e0a860;
    --here: #6fcf97; --away: #7db7ee; --made: #e0a860; --none: #6b7682; --bad: #ff9d94;
    --weights: #4b8fd0; --draft: #7db1e2; --adapters: #b3d2ef; --work: #7b8591; --cache: #d98e2f; --taken: #3a434e; }
}
svg { font: 13px/1.4 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; height: auto; }
svg { max-width: 100%; }
text { fill: var(--ink); }
.soft { fill: var(--soft); color: var(--soft); }
.small { font-size: 11.5px; }
.bold { font-weight: 600; }
"""
_PAGE = """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 20px 16px 60px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 6px; } h2 { font-size: 1.05rem; margin: 0 0 8px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; margin: 16px 0; }
.wide { overflow-x: auto; } .wide svg { max-width: none; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 4px 16px 4px 0; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; }
th, td:not(:last-child) { white-space: nowrap; overflow-wrap: normal; } td:last-child { min-width: 22em; }
p { margin: 0 0 8px; } ul { margin: 6px 0; padding-left: 20px; } code { font-size: .9em; }
"""


def element(tag: str, text: object = "", children: Iterable[Element] = (), **attributes: object) -> Element:
    """``class_`` is class; an underscore is a hyphen (``stroke_width``)."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()})
    made.text = str(text) or None
    made.extend(children)
    return made


def picture(width: float, height: float, title: str, style: str, children: Iterable[Element]) -> Element:
    """One SVG that carries its own style, so that it is right wherever it is shown."""
    words = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width:g} {height:g}", "role": "img"}
    inside = (element("title", title), element("style", STYLE + style), *children)
    return element("svg", "", inside, width=f"{width:g}", height=f"{height:g}", **words)


def page(title: str, parts: Iterable[Element]) -> str:
    """One HTML file; the browser is told to fetch nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    body = "".join(markup(part) for part in parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}{_PAGE}</style></head>\n<body>{body}</body></html>\n"
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
