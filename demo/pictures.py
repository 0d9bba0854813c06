"""Pictures side by side, and how far two runs of them are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, TEXT, FAINT_TEXT = "#ffffff", "#22272e", "#68717d"
BETWEEN, MARKED = "#d8dce1", "#d2322d"  # the lines of a grid, and the frame of a marked picture
MARGIN, GAP, LINE_HEIGHT = 24, 20, 19
TITLE_SIZE, TEXT_SIZE = 18, 14
ENLARGED = 2  # times, in width and height
FRAME = 4  # pixels


class Panel(NamedTuple):
    """A picture and the lines under it, the first of them its title."""

    picture: Image.Image
    caption: Sequence[str]


def load(paths: Sequence[Path]) -> list[Image.Image]:
    """The pictures of a run."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    return images


def psnr(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> float:
    """Peak signal-to-noise ratio in dB over all pictures; infinite if they are equal."""
    difference = _values(one) - _values(other)
    error = np.mean(difference**2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _values(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(float)


def grid(images: Sequence[Image.Image], columns: int, marked: Sequence[bool]) -> Image.Image:
    """Pictures of one size, enlarged, in rows of `columns`; those that are marked have a frame."""
    width, height = (ENLARGED * side for side in images[0].size)
    across, down = width + FRAME, height + FRAME
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * across + FRAME, rows * down + FRAME), BETWEEN)
    draw = ImageDraw.Draw(sheet)
    for index, (image, is_marked) in enumerate(zip(images, marked, strict=True)):
        x, y = FRAME + index % columns * across, FRAME + index // columns * down
        if is_marked:
            frame = (x - FRAME, y - FRAME, x + width + FRAME - 1, y + height + FRAME - 1)
            draw.rectangle(frame, fill=MARKED)
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (x, y))
    return sheet


def side_by_side(
    title: str, panels: Sequence[Panel], heading: str, texts: Sequence[str], columns: int
) -> Image.Image:
    """The panels in a row, and below, under their heading, `texts` in rows of `columns`."""
    column = max(panel.picture.width for panel in panels)
    width = 2 * MARGIN + len(panels) * (column + GAP) - GAP
    captions_at = MARGIN + TITLE_SIZE + GAP + max(panel.picture.height for panel in panels) + 10
    most = max(len(panel.caption) for panel in panels)
    texts_at = captions_at + most * LINE_HEIGHT + GAP
    rows = math.ceil(len(texts) / columns)

    sheet = Image.new("RGB", (width, texts_at + (rows + 1) * LINE_HEIGHT + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_SIZE)
    draw.text((MARGIN, MARGIN - 6), title, fill=TEXT, font=ImageFont.load_default(TITLE_SIZE))
    for index, panel in enumerate(panels):
        x = MARGIN + index * (column + GAP)
        sheet.paste(panel.picture, (x, MARGIN + TITLE_SIZE + GAP))
        for number, line in enumerate(panel.caption):
            colour = FAINT_TEXT if number else TEXT
            draw.text((x, captions_at + number * LINE_HEIGHT), line, fill=colour, font=font)
    draw.text((MARGIN, texts_at), heading, fill=FAINT_TEXT, font=font)
    for index, text in enumerate(texts):
        x = MARGIN + index % columns * ((width - 2 * MARGIN) // columns)
        draw.text((x, texts_at + (1 + index // columns) * LINE_HEIGHT), text, fill=TEXT, font=font)
    return sheet
