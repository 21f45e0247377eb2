"""Colours in light and dark: of the page, of the models, and of the cells of a heat map; each text on its ground has WCAG's contrast."""

import colorsys
from collections.abc import Sequence

from dat_jax.methods import METHODS
from dat_jax.report.wording import base

# Name -> light, dark. Figures are drawn in the light ones, and then refer to the names, so that they follow the reader's scheme.
PAGE = {
    "ink": ("#22262b", "#e6e8eb"),
    "faint": ("#5f666e", "#a7aeb7"),
    "rule": ("#dfe2e6", "#363c44"),
    "paper": ("#ffffff", "#15181c"),
    "wash": ("#f4f5f6", "#1f242a"),
    "bar": ("#c9ced4", "#4a525b"),
    "note": ("#fdf8e8", "#2c2716"),
    "mark": ("#b58a14", "#c8a02c"),
    "link": ("#17607e", "#7cc4e0"),
}
INK, FAINT, RULE, PAPER, BAR = (PAGE[name][0] for name in ("ink", "faint", "rule", "paper", "bar"))
# Of models that are no methods, and of methods without a colour of their own; a league of all methods has twelve.
OTHERS = (
    *("#7a5ea8", "#4f8a4b", "#b0475a", "#8f7620", "#2b8a96", "#c2489b"),
    *("#5c6f1f", "#4763c4", "#8a5a44", "#1f7a5c", "#9a3fb0", "#6b7280"),
)
SEEN = 3.0  # WCAG 2.1, 1.4.11: contrast of a mark with the paper
COLD, HOT = ((238, 240, 242), (32, 37, 43)), ((176, 42, 32), (226, 92, 78))  # light and dark: no behavior broken, all of them


def color(method: str, methods: Sequence[str]) -> str:
    """A model's colour, the same in every figure and in the page; the same method in several workdirs has one colour."""
    names = list(dict.fromkeys(base(name) for name in methods))
    others = [name for name in names if name not in METHODS or not METHODS[name].color]
    name = base(method)
    return OTHERS[others.index(name) % len(OTHERS)] if name in others else METHODS[name].color


def luminance(rgb: Sequence[float]) -> float:
    """Relative luminance of channels from 0 to 255. Source: WCAG 2.1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (channel / 255 for channel in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Contrast of two colours, from 1 to 21. Source: WCAG 2.1."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def channels(color: str) -> tuple[int, int, int]:
    """The channels of "#rrggbb"."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def dark(color: str) -> str:
    """A model's colour for dark paper: lightened until it stands out as far as marks must."""
    paper = channels(PAGE["paper"][1])
    hue, light, strong = colorsys.rgb_to_hls(*(channel / 255 for channel in channels(color)))
    while contrast([255 * c for c in colorsys.hls_to_rgb(hue, light, strong)], paper) < SEEN + 1.5 and light < 1:
        light += 0.01
    return "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hls_to_rgb(hue, min(light, 1.0), strong))


def heat(rate: float, scheme: int) -> tuple[str, str]:
    """Ground and ink of a cell of the heat map, in the light (0) or the dark (1) scheme; the ink is black or white, whichever is read."""
    share = rate**0.85
    ground = [round(cold + (hot - cold) * share) for cold, hot in zip(COLD[scheme], HOT[scheme])]
    ink = max(("#000000", "#ffffff"), key=lambda name: contrast(channels(name), ground))
    return "#" + "".join(f"{channel:02x}" for channel in ground), ink


def variables(methods: Sequence[str], scheme: int) -> str:
    """The page's colours and the models' as CSS variables."""
    shades = sorted({color(method, methods) for method in methods})
    found = {name: pair[scheme] for name, pair in PAGE.items()}
    found |= {variable(shade): dark(shade) if scheme else shade for shade in shades}
    return " ".join(f"--{name}: {value};" for name, value in found.items())


def variable(shade: str) -> str:
    """The name of the CSS variable of a model's colour."""
    return f"c{shade.removeprefix('#')}"


def follow(svg: str, methods: Sequence[str]) -> str:
    """A drawn figure whose colours follow the reader's scheme."""
    for name in ("ink", "faint", "rule", "paper", "bar"):
        svg = svg.replace(PAGE[name][0], f"var(--{name})")
    for shade in sorted({color(method, methods) for method in methods}):
        svg = svg.replace(shade, f"var(--{variable(shade)})")
    return svg
