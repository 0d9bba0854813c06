"""Rules that say what a picture shows: no model, no threshold that was fitted to a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .scenes import COLOURS, Scene

NAMES = {value: name for name, value in COLOURS.items()}
SPECK = 12  # pixels; a smaller patch is noise, not a shape
BORDER = 1  # pixels of a drawn picture that no shape reaches
# How far 95 % of a shape's points are from its centre at most, in standard deviations of the points
# along its two main axes: circle 1.94, square 2.08, triangle 2.25. A stretch does not change it,
# and edges and corners that are off by a pixel hardly do.
QUANTILE = 0.95
CIRCLE_BELOW, TRIANGLE_ABOVE = 2.01, 2.16
MOST_STRETCH = 1.5  # between the two axes; what is longer is none of the three


@dataclass(frozen=True)
class Thing:
    """A patch of the picture that is not background. `colour` is empty if it is of many,
    `shape` if it is none of the three."""

    colour: str
    shape: str
    area: int


@dataclass(frozen=True)
class Reading:
    """What is in a picture. `background` is empty if its border is of many colours."""

    background: str
    things: tuple[Thing, ...]

    def shows(self, scene: Scene) -> bool:
        """Whether count, colours and shapes are all those of the scene."""
        return (
            self.background == scene.background
            and len(self.things) == scene.count
            and all((t.colour, t.shape) == (scene.colour, scene.shape) for t in self.things)
        )


def read(picture: np.ndarray) -> Reading:
    """Read a picture.

    Args:
        picture: [height, width, 3], between 0 and 1.
    """
    corners = picture > 0.5  # the nearest colour: all colours are corners of the RGB cube
    inner = (slice(BORDER, -BORDER),) * 2
    border = np.ones(picture.shape[:2], bool)
    border[inner] = False
    background = _main_colour(corners[border])
    if not background:
        return Reading("", ())
    labels, _ = ndimage.label((corners != np.array(COLOURS[background])).any(-1))
    things = []
    for index, place in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[place] == index
        if mask.sum() >= SPECK:
            things.append(Thing(_main_colour(corners[place][mask]), _shape(mask), int(mask.sum())))
    return Reading(background, tuple(things))


def _main_colour(corners: np.ndarray) -> str:
    """The colour that most of the pixels have; nothing where none has the majority."""
    ((value, count),) = Counter(map(tuple, corners.astype(int).tolist())).most_common(1)
    return NAMES[value] if 2 * count > len(corners) else ""


def _shape(mask: np.ndarray) -> str:
    points = np.argwhere(mask) - np.argwhere(mask).mean(0)
    # Each pixel is a square, with a variance of its own.
    variances, axes = np.linalg.eigh(points.T @ points / len(points) + np.eye(2) / 12)
    if variances[1] > MOST_STRETCH**2 * variances[0]:
        return ""
    spread = np.quantile(np.hypot(*(points @ axes / np.sqrt(variances)).T), QUANTILE)
    if spread < CIRCLE_BELOW:
        return "circle"
    return "triangle" if spread > TRIANGLE_ABOVE else "square"
