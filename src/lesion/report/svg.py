"""Matplotlib's SVG made fit for a page: no style attributes, colours as classes, identifiers that do not collide."""

import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

import numpy as np
from matplotlib.markers import MarkerStyle

from lesion.report.palette import role_of

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
_ILLEGAL = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]")
"""What XML does not allow, and the marks that reverse the text behind them until another mark ends it."""
_KEPT = {
    *("fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-linejoin", "stroke-linecap"),
    *("stroke-dasharray", "stroke-dashoffset", "opacity", "font-size", "font-family", "font-weight", "text-anchor"),
    "image-rendering",
}
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


def standalone(text: str, title: str) -> str:
    """A file of its own: presentation attributes in the place of style, a title, text kept as text."""
    root = _attributes_only(text)
    for element in root.iter(f"{{{_SVG}}}text"):
        element.set("font-family", _FONT)
    name = ElementTree.Element(f"{{{_SVG}}}title")
    name.text = legal(title)
    root.insert(0, name)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def inline(text: str, *, prefix: str, label: str, hover: Mapping[str, Sequence[str]], wide: int = 1) -> str:
    """An element for a page.

    Args:
        text: matplotlib's SVG.
        prefix: put before the identifiers that are kept; unique on the page.
        label: what the figure is called for readers who cannot see it.
        hover: for the group of each identifier, a text for each of its markers, or for its one shape, in order.
        wide: ordinary panels that it is wide.
    """
    root = _attributes_only(text)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", legal(label))
    root.set("class", "plot" if wide == 1 else f"plot w{wide}")
    _add_hover(root, hover)
    _shorten_identifiers(root, prefix)
    for element in root.iter():
        element.attrib.pop("font-family", None)
        roles = [f"{side[0]}-{role_of(element.attrib[side])}" for side in _coloured(element)]
        if roles:
            element.set("class", " ".join(roles))
    return ElementTree.tostring(root, encoding="unicode")


def legal(text: str) -> str:
    """`text` with a mark in the place of each character that XML does not allow, or that turns text around."""
    return _ILLEGAL.sub("\ufffd", text)


def legend_key(role: str, marker: str, *, dashed: bool = False) -> str:
    """A short line, with its marker if it has one, for a legend in the page's own text."""
    dashes = ' stroke-dasharray="4.5 3.2"' if dashed else ""
    line = f'<line x1="0" y1="6" x2="26" y2="6" stroke-width="1.8"{dashes} class="s-{role}"/>'
    start = '<svg class="key" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true" focusable="false">'
    if not marker:
        return f"{start}{line}</svg>"
    path = MarkerStyle(marker)
    outline = np.asarray(path.get_path().transformed(path.get_transform()).to_polygons()[0])
    points = " ".join(f"{13 + 7.5 * x:.1f},{6 - 7.5 * y:.1f}" for x, y in outline)
    return f'{start}{line}<polygon points="{points}" stroke-width="0.9" class="f-{role} s-page"/></svg>'


def _attributes_only(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    for parent in root.iter():
        for child in [c for c in parent if c.tag in {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}]:
            parent.remove(child)
    for element in root.iter():
        for name, value in _declarations(element.attrib.pop("style", "")):
            element.set(name, value)
        if "d" in element.attrib:
            element.set("d", re.sub(r"\s+", " ", element.attrib["d"]).strip())
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
    root.set("stroke-linejoin", "round")  # in the place of matplotlib's style element
    return root


def _declarations(style: str) -> Iterator[tuple[str, str]]:
    for declaration in filter(None, (part.strip() for part in style.split(";"))):
        name, value = (part.strip() for part in declaration.split(":", 1))
        if name not in _KEPT:
            raise ValueError(f"matplotlib wrote a style that has no attribute: {declaration!r}")
        yield name, value


def _coloured(element: ElementTree.Element) -> Iterator[str]:
    for side in ("fill", "stroke"):
        if element.attrib.get(side, "none") != "none":
            yield side
    if element.tag == f"{{{_SVG}}}text" and "fill" not in element.attrib:
        element.set("fill", "#1a1a1a")
        yield "fill"


def _add_hover(root: ElementTree.Element, hover: Mapping[str, Sequence[str]]) -> None:
    for group in root.iter(f"{{{_SVG}}}g"):
        texts = hover.get(group.attrib.get("id", ""), ())
        markers = list(group.iter(f"{{{_SVG}}}use")) or list(group.iter(f"{{{_SVG}}}path"))
        for marker, text in zip(markers, texts, strict=bool(texts)):
            ElementTree.SubElement(marker, f"{{{_SVG}}}title").text = legal(text)


def _shorten_identifiers(root: ElementTree.Element, prefix: str) -> None:
    link = f"{{{_XLINK}}}href"
    for image in root.iter(f"{{{_SVG}}}image"):
        image.set("href", image.attrib.pop(link))  # the data of the image, not a reference
    referenced = {e.attrib[link][1:] for e in root.iter() if link in e.attrib}
    referenced |= {e.attrib["clip-path"][5:-1] for e in root.iter() if "clip-path" in e.attrib}
    short = {name: f"{prefix}-{index}" for index, name in enumerate(sorted(referenced))}
    for element in root.iter():
        identifier = element.attrib.pop("id", None)
        if identifier in short:
            element.set("id", short[identifier])
        if link in element.attrib:
            element.set("href", f"#{short[element.attrib.pop(link)[1:]]}")
        if "clip-path" in element.attrib:
            element.set("clip-path", f"url(#{short[element.attrib['clip-path'][5:-1]]})")
