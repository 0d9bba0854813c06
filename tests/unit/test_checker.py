"""The rules that judge the demonstration's pictures: drawn ones, wrong ones, ones made by hand."""

import numpy as np
import pytest

from demo.shapes.checker import read
from demo.shapes.scenes import COLOURS, SIZE, Scene, all_scenes, draw

ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE] + 0.5


def test_every_drawn_scene_is_read_back_right():
    rng = np.random.default_rng(5)
    scenes = all_scenes()
    chosen = [scenes[i] for i in rng.integers(0, len(scenes), 500)]
    pictures = draw(chosen, rng)
    wrong = [s.prompt for s, p in zip(chosen, pictures, strict=True) if not read(p).shows(s)]
    assert wrong == []


def test_a_picture_shows_its_own_scene_and_no_other():
    scenes = all_scenes()
    chosen = scenes[::50]
    for scene, picture in zip(chosen, draw(chosen, np.random.default_rng(6)), strict=True):
        found = read(picture)
        assert [other for other in scenes if found.shows(other)] == [scene]


@pytest.mark.parametrize(
    "wrong",
    [
        Scene(3, "red", "circle", "blue"),
        Scene(1, "red", "circle", "blue"),
        Scene(2, "magenta", "circle", "blue"),
        Scene(2, "red", "square", "blue"),
        Scene(2, "red", "triangle", "blue"),
        Scene(2, "red", "circle", "cyan"),
    ],
    ids=lambda scene: scene.prompt,
)
def test_a_picture_that_is_wrong_in_one_thing_is_refused(wrong):
    asked = Scene.parse("two red circles on blue")
    for picture in draw([wrong] * 10, np.random.default_rng(7)):
        assert not read(picture).shows(asked)


def painted(*masks: np.ndarray, colour: str = "red", background: str = "blue") -> np.ndarray:
    """A picture made by hand, without smooth edges."""
    picture = np.full((SIZE, SIZE, 3), COLOURS[background], float)
    for mask in masks:
        picture[mask] = COLOURS[colour]
    return picture


def disc(x: float, y: float, radius: float) -> np.ndarray:
    return np.hypot(COLUMNS - x, ROWS - y) < radius


def box(x: float, y: float, half: float, turn: float = 0.0) -> np.ndarray:
    """A square, turned by an angle in degrees."""
    angle = np.deg2rad(turn)
    across, down = COLUMNS - x, ROWS - y
    u = np.cos(angle) * across + np.sin(angle) * down
    v = np.cos(angle) * down - np.sin(angle) * across
    return np.maximum(abs(u), abs(v)) < half


def triangle(x: float, y: float, radius: float, turn: float = 0.0) -> np.ndarray:
    """Three half-planes around its centre."""
    angles = np.deg2rad(turn + np.array([90, 210, 330]))
    reach = [np.cos(a) * (COLUMNS - x) + np.sin(a) * (ROWS - y) for a in angles]
    return np.max(reach, axis=0) < radius / 2


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        (disc(30, 30, 6), "circle"),
        (disc(33.4, 20.7, 9), "circle"),
        (box(30, 30, 6), "square"),
        (box(25, 40, 8, turn=20), "square"),
        (box(25, 40, 8, turn=45), "square"),
        (triangle(30, 30, 9), "triangle"),
        (triangle(30, 30, 11, turn=180), "triangle"),
        (triangle(40, 25, 11, turn=50), "triangle"),
    ],
)
def test_shapes_made_by_hand(mask, shape):
    found = read(painted(mask))
    [thing] = found.things
    assert (found.background, thing.colour, thing.shape) == ("blue", "red", shape)
    assert abs(thing.area - mask.sum()) <= 2  # a corner's last pixel may hang on by its own corner


def test_shapes_of_two_kinds_are_not_one_kind():
    found = read(painted(disc(16, 16, 8), box(48, 48, 7)))
    assert {thing.shape for thing in found.things} == {"circle", "square"}
    assert not any(found.shows(scene) for scene in all_scenes())


def test_one_shape_of_another_colour_is_refused():
    picture = painted(disc(16, 16, 8), disc(48, 48, 8))
    picture[disc(48, 48, 8)] = COLOURS["green"]
    assert not any(read(picture).shows(scene) for scene in all_scenes())


def test_shapes_that_touch_are_one_thing():
    assert not read(painted(disc(20, 32, 8), disc(34, 32, 8))).shows(
        Scene(2, "red", "circle", "blue")
    )


def test_specks_do_not_count():
    picture = painted(disc(30, 30, 8), box(50, 50, 1), box(10, 50, 1.5))
    assert read(picture).shows(Scene(1, "red", "circle", "blue"))


@pytest.mark.parametrize("background", COLOURS)
def test_nothing_shows_nothing(background):
    found = read(painted(background=background))
    assert found.background == background and found.things == ()
    assert not any(found.shows(scene) for scene in all_scenes())


def test_noise_shows_nothing():
    rng = np.random.default_rng(8)
    for _ in range(20):
        found = read(rng.uniform(0, 1, (SIZE, SIZE, 3)))
        assert not any(found.shows(scene) for scene in all_scenes())


def test_colours_may_be_off_by_some():
    rng = np.random.default_rng(9)
    noisy = painted(disc(30, 30, 8)) + rng.uniform(-0.4, 0.4, (SIZE, SIZE, 3))
    assert read(noisy).shows(Scene(1, "red", "circle", "blue"))
