"""Turn an SVG document of matplotlib into an element for a web page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from bench.errors import printable

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@dataclass(frozen=True)
class Tag:
    """Which row a group belongs to, by place and method, and what a pointer that rests on it shows."""

    row: int
    method: str
    tooltip: str


def inline(
    drawn: str, title: str, description: str, prefix: str, tags: Mapping[str, Tag], theme: Mapping[str, str]
) -> str:
    """Return `drawn` as an `<svg>` element for a page; see `plots.svg` for what it is like.

    Args:
        drawn: an SVG document as matplotlib writes it, with text as text.
        title: for screen readers.
        description: for screen readers.
        prefix: put before every id.
        tags: what the groups with these ids show.
        theme: the CSS custom property of each colour ("#rrggbb").
    """
    root = ET.fromstring(drawn)  # noqa: S314 - matplotlib has just written it
    for child in list(root):
        # The style in its definitions is for all elements (`*`), which in a page are also those of others.
        if child.tag == f"{SVG}metadata" or child.find(f"{SVG}style") is not None:
            root.remove(child)
    used = {value for element in root.iter() for value in _references(element)}
    for element in root.iter():
        tag = tags.get(element.get("id", ""))
        _attributes(element, prefix, theme, used)
        if tag:
            element.attrib |= {"class": "series", "data-row": str(tag.row), "data-method": tag.method}
            _first(element, "title", tag.tooltip)
    _flatten(root)
    for name, text in (("desc", description), ("title", title)):
        _first(root, name, text).set("id", f"{prefix}{name}")
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{prefix}title {prefix}desc",
        "style": "stroke-linejoin:round;stroke-linecap:butt;font-family:inherit",
    }
    ET.register_namespace("", SVG[1:-1])
    return ET.tostring(root, encoding="unicode")


def _first(parent: ET.Element, name: str, text: str) -> ET.Element:
    element = ET.Element(SVG + name)
    # Tools that read the page as XML refuse control characters, whatever the label.
    element.text = printable(text)
    parent.insert(0, element)
    return element


def _references(element: ET.Element) -> list[str]:
    """Return the ids that an element points to."""
    clip = re.search(r"url\(#(.+)\)", element.get("clip-path", ""))
    link = element.get(f"{XLINK}href")
    return [*([clip[1]] if clip else []), *([link[1:]] if link else [])]


def _flatten(parent: ET.Element) -> None:
    """Take out the space between elements, groups that say nothing, and what is painted with nothing."""
    children: list[ET.Element] = []
    for child in parent:
        _flatten(child)
        if child.tag == f"{SVG}g" and not child.attrib:
            children += child
        elif child.get("style") != "fill:none":
            children.append(child)
    for child in children:
        child.tail = None
    if children:
        parent.text = None
    parent[:] = children


def _attributes(element: ET.Element, prefix: str, theme: Mapping[str, str], used: set[str]) -> None:
    for key, value in list(element.attrib.items()):
        if key == f"{XLINK}href":
            del element.attrib[key]
            element.set("href", f"#{prefix}{value[1:]}")
        elif key == "id" and value in used:
            element.set(key, prefix + value)
        elif key == "clip-path":
            element.set(key, value.replace("url(#", f"url(#{prefix}"))
        elif key == "style":
            element.set(key, _style(value, theme))
        elif key in ("d", "x", "y", "width", "height", "transform"):
            shorter = re.sub(r"-?\d+\.\d+", _shorter, value)
            element.set(key, re.sub(r"\s*([MLCQz]|$)\s*", r"\1", shorter) if key == "d" else shorter)
        if (key == "id" and value not in used) or (key == "transform" and value.startswith("rotate(-0 ")):
            del element.attrib[key]


def _shorter(number: re.Match[str]) -> str:
    """Return a number of points with fewer digits: tenths, or if it is small, four digits."""
    value = float(number[0])
    return f"{round(value, 1):g}" if abs(value) >= 10 else f"{value:.4g}"


def _style(style: str, theme: Mapping[str, str]) -> str:
    """Return a style with themed colours, and of the font only size and weight: the rest is the page's."""
    kept = []
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":  # "bold 8px 'DejaVu Sans', sans-serif"; newer versions of matplotlib write each by itself
            name, value = "font-size", next(part for part in value.split() if part.endswith("px"))
        if name and name not in ("font-family", "stroke-linejoin"):
            kept.append(f"{name}:{value}")
    return re.sub(r"#[0-9a-f]{6}", lambda colour: _themed(colour[0], theme), ";".join(kept))


def _themed(colour: str, theme: Mapping[str, str]) -> str:
    return f"var({theme[colour]},{colour})" if colour in theme else colour
