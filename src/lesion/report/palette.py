"""Colours by what they stand for, on light and on dark; an intervention has one colour and one marker everywhere.

The hues follow Okabe and Ito, darkened (on light) and lightened (on dark) to a contrast of 4.5 with the page.
"""

from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.colors import to_hex

STEPS = 16
"""Colours of a heat map's scale: as many as can be told apart beside its colour bar."""


class Colour(NamedTuple):
    """One colour on the light and on the dark page."""

    light: str
    dark: str


def _heat() -> dict[str, Colour]:
    """The scale of heat maps, from the least to the most: away from the page, on light and on dark.

    Viridis, whose lightness rises evenly also for the colour-blind, without its two ends, so that on either half of the
    scale a number in black or in white has a contrast of 4.5 with its cell.
    """
    shades = [to_hex(colormaps["viridis"](0.9 - 0.88 * step / (STEPS - 1))) for step in range(STEPS)]
    return {f"heat_{step}": Colour(shades[step], shades[-1 - step]) for step in range(STEPS)}


ROLES = {
    "ink": Colour("#1a1a1a", "#e6e6e2"),
    "muted": Colour("#666664", "#a3a39e"),
    "rule": Colour("#c9c9c5", "#4a4c50"),
    "page": Colour("#ffffff", "#17181a"),
    "drop": Colour("#c2480a", "#ff9457"),
    "swap": Colour("#0b66a8", "#62b5ec"),
    "drop_attn": Colour("#00755a", "#37c79c"),
    "drop_mlp": Colour("#9c3d7c", "#e59bca"),
    "domain_0": Colour("#1b1b1c", "#e5e5e3"),
    "domain_1": Colour("#a35f00", "#e9a544"),
    "domain_2": Colour("#2471a8", "#73b9ea"),
    "domain_3": Colour("#6a4c9c", "#b59fe2"),
    "domain_4": Colour("#3a7527", "#88c66d"),
    "domain_5": Colour("#ad3644", "#ee8d97"),
    "domain_6": Colour("#5b676f", "#a8b3bb"),
    "domain_7": Colour("#80532a", "#d0a276"),
    "cell_low": Colour("#000000", "#ffffff"),  # numbers in the lower half of a heat map's scale
    "cell_high": Colour("#fefefe", "#000000"),  # in the upper half; no light colour is there twice
    **_heat(),
}
MARKERS = {"drop": "o", "swap": "s", "drop_attn": "^", "drop_mlp": "D"}
DOMAIN_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
WEIGHTS = {
    "original": "domain_0",
    "ablated": "drop_mlp",
    "zero_modes": "drop",
    "random": "swap",
    "matched": "drop_attn",
}
"""Zero modes and what they are compared with: one colour each everywhere."""


def role_of(colour: str) -> str:
    """The role of a light colour, as it is found in a figure.

    Raises:
        ValueError: a figure uses a colour outside the palette, which would not adapt to a dark page.
    """
    for role, pair in ROLES.items():
        if pair.light == colour.lower():
            return role
    raise ValueError(f"colour {colour} is not in the palette")


def palette_css() -> str:
    """Style rules: one variable a role on light and dark, and the classes `f-role` and `s-role` for figures."""
    light = "".join(f"--{role}:{pair.light};" for role, pair in ROLES.items())
    dark = "".join(f"--{role}:{pair.dark};" for role, pair in ROLES.items())
    classes = "\n".join(f".f-{role}{{fill:var(--{role})}}.s-{role}{{stroke:var(--{role})}}" for role in ROLES)
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{classes}\n"
