"""Pieces of HTML: text that is inert whatever it holds, tables in a box of their own, numbers as readers write them."""

import html as escaping
import unicodedata
from collections.abc import Sequence
from typing import Any

# Marks that turn the direction of what follows: a text could show itself, or the page's own words, in another order than it has.
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
SHOWN_LETTERS = 800


def visible(text: Any) -> str:
    """A text whose control characters and marks of direction are written out; line ends and tabs stay."""

    def shown(letter: str) -> str:
        hidden = letter in TURNING or (unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t")
        return f"\\u{ord(letter):04x}" if hidden else letter

    return "".join(map(shown, str(text)))


def text(value: Any) -> str:
    """A text that is shown as it is: no tag, no attribute's end, no entity."""
    return escaping.escape(visible(value))


def clipped(value: str) -> str:
    """A text, or its beginning where it is long."""
    return text(value if len(value) <= SHOWN_LETTERS else value[:SHOWN_LETTERS] + " ...")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", kind: str = "") -> str:
    """A table of ready pieces of HTML, the first column its rows' heads, in a box that scrolls sideways by itself."""
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{cell}</th>' if cell else "<td></td>" for cell in head)
    body = "".join(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>" for first, *rest in rows)
    shown = f'<p class="caption">{caption}</p>' if caption else ""
    named = f' class="{kind}"' if kind else ""
    return shown + box(f"<table{named}><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>")


def box(content: str) -> str:
    """What may be wider than the screen, in a box that scrolls by itself and that the keyboard reaches."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="scrolls sideways">{content}</div>'


def details(summary: str, content: str, attributes: str = "") -> str:
    """What is one click or key away."""
    return f"<details{attributes and ' ' + attributes}><summary>{summary}</summary>{content}</details>"


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(rate: float) -> str:
    """A share as per cent, with a decimal where it is small."""
    return f"{100 * rate:.0f} %" if rate in (0.0, 1.0) or 0.1 <= rate < 0.995 else f"{100 * rate:.1f} %"


def span(rates: Sequence[float]) -> str:
    """The interval of (rate, low, high)."""
    return f"{100 * rates[1]:.0f} to {100 * rates[2]:.0f}"


def number(value: Any) -> str:
    """A number, "-" where there is none."""
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
