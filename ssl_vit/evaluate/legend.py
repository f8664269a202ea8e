"""Images side by side, each under its title, large enough to be seen."""

import math

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

LINE, GAP, MARGIN = 16, 2, 6  # pixels: of a line of text, of the white between images, after a title
NARROWEST, SMALLEST = 256, 64  # pixels of a grid, and of an image in it, to either of which they are enlarged
LARGEST = 8192  # pixels of a column of images, above which they are not
CONFUSION = "row: class; column: predicted; black: all of it"


def titled_grid(
    images: list[UInt8[Tensor, "3 _ _"]], titles: list[str], columns: int, caption: str = ""
) -> UInt8[Tensor, "3 height width"]:
    """Rows of images of one size on white, enlarged by a whole number to whole squares of their pixels.

    Args:
        titles: of each image; a row in which all are empty has no line for them. What is not ASCII is escaped.
        caption: a line above all.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, (height, width) = ImageFont.load_default(12), images[0].shape[1:]
    caption, *titles = (ascii(text)[1:-1] for text in (caption, *titles))
    columns = min(columns, len(images))
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    lines = [LINE * any(titles[i] for i in row) for row in rows]
    cell = max(
        SMALLEST, math.ceil(NARROWEST / columns) - GAP, *(math.ceil(font.getlength(text)) + MARGIN for text in titles)
    )
    factor = max(1, min(math.ceil(cell / width), LARGEST // (height * len(rows))))
    cell, top = max(cell, factor * width), GAP + LINE * bool(caption)
    size = GAP + columns * (cell + GAP), top + sum(lines) + len(rows) * (factor * height + GAP)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, GAP), caption, "black", font)
    for row, line in zip(rows, lines, strict=True):
        for column, i in enumerate(row):
            left = GAP + column * (cell + GAP)
            draw.text((left, top), titles[i], "black", font)
            shown = Image.fromarray(images[i].permute(1, 2, 0).contiguous().numpy())
            canvas.paste(shown.resize((factor * width, factor * height), Image.Resampling.NEAREST), (left, top + line))
        top += line + factor * height + GAP
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()
