"""Pictures of one to three equal shapes on a background, and their prompts.

The vocabulary is closed: "two red circles on blue" is a prompt, "some circles" is not. A hundred
combinations are held out: no training picture shows them, so that a picture of one shows that the
model has learnt what the words mean.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIZE = 64  # pixels, in width and height
COUNTS = ("one", "two", "three")
SHAPES = ("circle", "square", "triangle")
COLOURS = {  # the corners of the RGB cube, the farthest apart that colours can be
    "black": (0, 0, 0),
    "blue": (0, 0, 1),
    "green": (0, 1, 0),
    "cyan": (0, 1, 1),
    "red": (1, 0, 0),
    "magenta": (1, 0, 1),
    "yellow": (1, 1, 0),
    "white": (1, 1, 1),
}
NUM_HELD_OUT = 100

# Smallest and largest, in pixels: a circle's radius, half a square's side, a triangle's
# circumradius. All three kinds cover about the same area.
EXTENTS = {"circle": (7.0, 9.0), "square": (6.2, 8.0), "triangle": (8.5, 10.5)}
REACH = {"circle": 1.0, "square": 1.0, "triangle": 3**0.5 / 2}  # extent to the outermost column
GAP = 2.0  # pixels between two shapes
MOST_ASIDE = 8.0  # pixels, from the middle of its column
EDGE = 2.0  # pixels in which a shape fades; a sharper one would be lost in the codec


@dataclass(frozen=True, order=True)
class Scene:
    """What a picture shows, apart from where.

    Attributes:
        count: 1 to 3.
        colour, shape: of all of them.
        background: another colour.
    """

    count: int
    colour: str
    shape: str
    background: str

    @property
    def prompt(self) -> str:
        plural = "s" if self.count > 1 else ""
        return f"{COUNTS[self.count - 1]} {self.colour} {self.shape}{plural} on {self.background}"

    @classmethod
    def parse(cls, prompt: str) -> Scene:
        """The scene that a prompt asks for.

        Raises:
            ValueError: it is not of the form that `Scene.prompt` has; says what is wrong.
        """
        words = prompt.lower().split()
        if len(words) != 5 or words[3] != "on":
            raise ValueError(f"{prompt!r} is not like 'two red circles on blue'")
        count, colour, shape, _, background = words
        shape = shape.removesuffix("s")
        for word, known in (
            (count, COUNTS),
            (colour, COLOURS),
            (shape, SHAPES),
            (background, COLOURS),
        ):
            if word not in known:
                raise ValueError(f"{word!r} in {prompt!r} is not one of {', '.join(known)}")
        if colour == background:
            raise ValueError(f"{prompt!r}: {colour} on {background} shows nothing")
        return cls(COUNTS.index(count) + 1, colour, shape, background)


def all_scenes() -> list[Scene]:
    """Every combination, in order."""
    combinations = itertools.product((1, 2, 3), COLOURS, SHAPES, COLOURS)
    return sorted(Scene(*each) for each in combinations if each[1] != each[3])


def split() -> tuple[list[Scene], list[Scene]]:
    """The scenes to train with, and those that are held out."""
    scenes = all_scenes()
    random.Random("held out").shuffle(scenes)
    return sorted(scenes[NUM_HELD_OUT:]), scenes[:NUM_HELD_OUT]


def draw(scenes: Sequence[Scene], rng: np.random.Generator) -> np.ndarray:
    """A picture of each scene, with random heights and sizes.

    Returns:
        [scenes, SIZE, SIZE, 3], float32 between 0 and 1, with smooth edges.
    """
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    pictures = np.empty((len(scenes), SIZE, SIZE, 3), np.float32)
    for picture, scene in zip(pictures, scenes, strict=True):
        coverage = np.zeros((SIZE, SIZE), np.float32)
        for x, y, extent in _places(scene, rng):
            distance = _distance(scene.shape, axis - x, axis[:, None] - y, extent)
            np.maximum(coverage, np.clip(0.5 - distance / EDGE, 0, 1), out=coverage)
        colour, background = (
            np.array(COLOURS[name], np.float32) for name in (scene.colour, scene.background)
        )
        picture[:] = background + coverage[..., None] * (colour - background)
    return pictures


def _places(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """x, y and extent of each shape: side by side, each at a height and of a size of its own."""
    places = []
    column = SIZE / scene.count
    for index in range(scene.count):
        extent = rng.uniform(*EXTENTS[scene.shape])
        reach = extent * REACH[scene.shape]
        room = min(column / 2 - reach - GAP / 2, MOST_ASIDE)
        x = column * (index + 0.5) + rng.uniform(-room, room)
        y = rng.uniform(reach + GAP, SIZE - reach - GAP)
        places.append((x, y, extent))
    return places


def _distance(shape: str, x: np.ndarray, y: np.ndarray, extent: float) -> np.ndarray:
    """To the edge, in pixels, negative inside (at corners less than the true distance)."""
    if shape == "circle":
        return np.hypot(x, y) - extent
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - extent
    # Three half-planes around the centre, each half a circumradius away.
    return np.maximum(y, 3**0.5 / 2 * np.abs(x) - y / 2) - extent / 2
