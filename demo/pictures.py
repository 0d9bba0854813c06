"""Pictures side by side, and how far two of them are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, TEXT, FAINT_TEXT = "#ffffff", "#22272e", "#68717d"
MARGIN, GAP, LINE_HEIGHT = 24, 16, 19
TITLE_SIZE, TEXT_SIZE = 18, 14
MIN_COLUMN_WIDTH = 300  # so that a caption fits under a small picture


class Panel(NamedTuple):
    """A picture and the lines under it, the first of them its title."""

    picture: Image.Image
    caption: Sequence[str]


def load(paths: Sequence[Path]) -> list[Image.Image]:
    """The frames of a run; one, if it made a still picture."""
    frames = []
    for path in paths:
        with Image.open(path) as image:
            frames.append(image.convert("RGB"))
    return frames


def strip(frames: Sequence[Image.Image], most: int = 4) -> Image.Image:
    """Up to `most` frames, evenly spaced in time from the first to the last, in a row."""
    count = min(most, len(frames))
    chosen = [frames[i * (len(frames) - 1) // max(count - 1, 1)] for i in range(count)]
    return Image.fromarray(np.concatenate([np.asarray(frame) for frame in chosen], axis=1))


def psnr(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> float:
    """Peak signal-to-noise ratio in dB over all frames; infinite if they are equal."""
    difference = np.stack(one).astype(float) - np.stack(other).astype(float)
    error = np.mean(difference**2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def difference(one: Image.Image, other: Image.Image) -> tuple[Image.Image, int]:
    """The absolute difference of two pictures, made brighter by a factor, and that factor.

    It is the largest power of two, up to 32, that leaves 99 % of the values within range.
    """
    values = np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))
    high = max(float(np.percentile(values, 99)), 1.0)
    factor = 2 ** min(int(math.log2(max(255 / high, 1))), 5)
    return Image.fromarray((values * factor).clip(0, 255).astype(np.uint8)), factor


def side_by_side(title: str, panels: Sequence[Panel]) -> Image.Image:
    """The panels in a row, or, where they are strips of frames, one below the other."""
    column = max(MIN_COLUMN_WIDTH, *(panel.picture.width for panel in panels))
    picture_height = max(panel.picture.height for panel in panels)
    row = picture_height + GAP // 2 + LINE_HEIGHT * max(len(panel.caption) for panel in panels)
    columns = 1 if column > 2 * picture_height else len(panels)
    rows = math.ceil(len(panels) / columns)

    top = MARGIN + TITLE_SIZE + GAP
    width = 2 * MARGIN + columns * column + (columns - 1) * GAP
    sheet = Image.new("RGB", (width, top + rows * (row + GAP) + MARGIN - GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 6), title, fill=TEXT, font=ImageFont.load_default(TITLE_SIZE))
    font = ImageFont.load_default(TEXT_SIZE)
    for index, panel in enumerate(panels):
        x = MARGIN + (index % columns) * (column + GAP)
        y = top + (index // columns) * (row + GAP)
        sheet.paste(panel.picture, (x, y))
        y += picture_height + GAP // 2
        for number, line in enumerate(panel.caption):
            colour = FAINT_TEXT if number else TEXT
            draw.text((x, y + number * LINE_HEIGHT), line, fill=colour, font=font)
    return sheet
