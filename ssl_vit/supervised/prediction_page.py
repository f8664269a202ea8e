"""Predictions as one HTML page that a person checks: thumbnails, classes, confidence; nothing is loaded from elsewhere.

Letters: H x W pixels, C channels.
"""

import base64
import heapq
import io
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from statistics import mean
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ssl_vit.config.checks import printable

MOST = 1000  # images of a page, and unreadable ones: 5 MB
SIDE = 160  # of a thumbnail, at most, in pixels
UNSURE = 0.5  # confidence below which a bar has another color
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --ink: #1c2330; --soft: #667085; --line: #e1e5eb;
  --bar: #3b6fd4; --unsure: #d9822b; --rail: #e9edf3 }
@media (prefers-color-scheme: dark) { :root { --back: #12151b; --card: #1b2029; --ink: #e6e9ef; --soft: #98a2b3;
  --line: #2b323e; --bar: #6c9bf5; --unsure: #e8a04e; --rail: #2a313d } }
body { margin: 0 auto; max-width: 1400px; padding: 24px; background: var(--back); color: var(--ink);
  font: 14px/1.45 system-ui, sans-serif }
h1 { font-size: 22px; margin: 0 } h2 { font-size: 16px; margin: 28px 0 10px }
p { margin: 4px 0; color: var(--soft); overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line) }
th, td { padding: 5px 12px; text-align: left; overflow-wrap: anywhere } th { color: var(--soft); font-weight: 500 }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } td.wide { width: 40% }
.scroll { max-height: 340px; overflow: auto }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px; min-width: 0 }
.card img { display: block; width: 100%; height: 160px; object-fit: contain; background: var(--rail) }
.card img.small { image-rendering: pixelated }
.name { margin: 7px 0 5px; color: var(--soft); font: 11px/1.35 ui-monospace, monospace; overflow-wrap: anywhere }
.row { display: grid; grid-template-columns: 1fr auto; column-gap: 8px; font-size: 12px; margin-top: 4px }
.row span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.row:not(.best) { color: var(--soft) } .best { font-weight: 600; font-size: 13px }
.rail { grid-column: 1 / -1; height: 4px; border-radius: 2px; background: var(--rail); overflow: hidden }
.rail i { display: block; height: 100%; background: var(--bar) } .rail i.unsure { background: var(--unsure) }
"""


class Gallery:
    """The least confident predictions, with thumbnails: those that a person who checks a model looks at first."""

    def __init__(self, most: int = MOST) -> None:
        self.most, self._heap, self._seen = most, list[tuple[float, int, dict[str, Any], str]](), 0

    def add(self, row: dict[str, Any], thumbnail: Image.Image) -> None:
        """Keep a row and its thumbnail, unless there are enough that are less confident."""
        self._seen += 1
        full, key = len(self._heap) >= self.most, -row["probability"]
        if full and key <= self._heap[0][0]:
            return
        content = io.BytesIO()
        thumbnail.save(content, "JPEG", quality=88, subsampling=0)
        item = (key, -self._seen, row, base64.b64encode(content.getvalue()).decode())
        (heapq.heappushpop if full else heapq.heappush)(self._heap, item)

    def cards(self) -> list[tuple[dict[str, Any], str]]:
        """(row, JPEG in base64), the least confident first."""
        return [(row, content) for _, _, row, content in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


def thumbnail(pixels: UInt8[np.ndarray, "H W C"]) -> Image.Image:
    """The whole image, as it was decoded for the model, small; of channels that are not 3 the first, in gray."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    image.thumbnail((SIDE, SIDE))
    return image


def page_of(
    rows: Sequence[dict[str, Any]], gallery: Gallery, classes: Sequence[str], source: dict[str, str], total: int
) -> str:
    """The page. rows: of predict, all of them; source: what is said of where they are from; total: images there are."""
    read, unread = ([row for row in rows if bool(row["error"]) == failed] for failed in (False, True))
    known, cards = " \u00b7 ".join(f"{key} {_text(value)}" for key, value in source.items()), gallery.cards()
    counted = f"{len(read):,} images classified, {len(unread):,} could not be read"
    counted += f"; stopped after {len(rows):,} of {total:,}" * (len(rows) < total)
    title, more = "The least confident first", len(read) - len(cards)
    note = f"<p>{more:,} more confident images are not shown; out=predictions.csv lists all.</p>" if more > 0 else ""
    body = [f"<h1>Predictions</h1><p>{known}</p><p>{counted}</p>", _summary(read, classes)]
    body += [f"<h2>{title}</h2>{note}<div class=cards>", *(_card(*card) for card in cards), "</div>"] if cards else []
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang=en><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width"><title>Predictions</title>',
            f"<style>{STYLE}</style></head><body>",
            *[*body, _unreadable(unread), "</body></html>\n"],
        ]
    )


def _text(value: str) -> str:
    """A stranger's text in HTML; a line break, or a mark that turns the direction of writing, as its escape."""
    return escape(printable(value))


def _bar(fraction: float, unsure: bool = False) -> str:
    return f'<div class=rail><i{" class=unsure" * unsure} style="width:{100 * fraction:.1f}%"></i></div>'


def _card(row: dict[str, Any], content: str) -> str:
    size = Image.open(io.BytesIO(base64.b64decode(content))).size
    lines = [
        f"<div class='row{' best' * (number == 0)}'><span>{_text(name)}</span><span>{100 * fraction:.1f} %</span>"
        f"{_bar(fraction, number == 0 and fraction < UNSURE)}</div>"
        for number, (name, fraction) in enumerate(row["top"].items())
    ]
    small = " class=small" * (max(size) < SIDE // 2)
    image = f'<img{small} alt="" src="data:image/jpeg;base64,{content}">'
    return f"<div class=card>{image}<div class=name>{_text(row['file'])}</div>{''.join(lines)}</div>"


def _summary(read: Sequence[dict[str, Any]], classes: Sequence[str]) -> str:
    """A table of the classes: how often each is predicted, and how surely."""
    found = defaultdict[str, list[float]](list)
    for row in read:
        found[row["prediction"]].append(row["probability"])
    lines = [
        f"<tr><td>{_text(name)}</td><td class=n>{len(values):,}</td><td class=wide>{_bar(len(values) / len(read))}</td>"
        f"<td class=n>{100 * mean(values):.1f} %</td><td class=n>{100 * min(values):.1f} %</td></tr>"
        for name, values in sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    head = "<th>class</th><th class=n>images</th><th></th><th class=n>mean confidence</th><th class=n>lowest</th>"
    never = [name for name in classes if name not in found]
    note = f"<p>Never predicted: {len(never):,} of {len(classes):,} classes, {_text(', '.join(never[:20]))}"
    note += ", ...</p>" if len(never) > 20 else "</p>"
    table = f"<div class=scroll><table><tr>{head}</tr>{''.join(lines)}</table></div>" if lines else ""
    return f"<h2>Classes</h2>{table}{note * bool(never)}"


def _unreadable(unread: Sequence[dict[str, Any]]) -> str:
    lines = [f"<tr><td>{_text(row['file'])}</td><td>{_text(row['error'])}</td></tr>" for row in unread[:MOST]]
    more = f"<p>and {len(unread) - MOST:,} more</p>" * (len(unread) > MOST)
    return f"<h2>Unreadable images</h2><table>{''.join(lines)}</table>{more}" if lines else ""
