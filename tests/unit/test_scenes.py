"""The demonstration's pictures and prompts: the closed vocabulary, the split, the drawing."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from demo.shapes import text
from demo.shapes.scenes import COLOURS, NUM_HELD_OUT, SHAPES, SIZE, Scene, all_scenes, draw, split


def test_every_scene_is_parsed_from_its_prompt():
    scenes = all_scenes()
    assert len(set(scenes)) == len(scenes) == 3 * 3 * 8 * 7
    assert [Scene.parse(scene.prompt) for scene in scenes] == scenes
    assert Scene(1, "red", "square", "blue").prompt == "one red square on blue"
    assert Scene(3, "cyan", "circle", "black").prompt == "three cyan circles on black"


@pytest.mark.parametrize(
    "prompt",
    ["Two RED circles on Blue", "  two red\tcircles  on blue\n", "two red circle on blue"],
)
def test_case_spaces_and_the_plural_do_not_matter(prompt):
    assert Scene.parse(prompt) == Scene(2, "red", "circle", "blue")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", ["''", "not like 'two red circles on blue'"]),
        ("some circles", ["'some circles'", "not like"]),
        ("two red circles in blue", ["not like"]),
        ("two red circles on blue on white", ["not like"]),
        ("two, red circles on blue", ["'two,'", "one, two, three"]),
        ("four red circles on blue", ["'four'", "one, two, three"]),
        ("0 red circles on blue", ["'0'"]),
        ("two pink circles on blue", ["'pink'", "black, blue, green"]),
        ("two red hexagons on blue", ["'hexagon'", "circle, square, triangle"]),
        ("two red circless on blue", ["'circles'"]),
        ("two red s on blue", ["''", "circle, square, triangle"]),
        ("two red circles on blue\x00", ["'blue\\x00'"]),
        ("two red circles on grey", ["'grey'", "black, blue, green"]),
        ("two red circles on red", ["red on red shows nothing"]),
        ("two " * 100_000, ["not like"]),
    ],
)
def test_other_prompts_are_refused_with_what_is_allowed(prompt, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        Scene.parse(prompt)
    assert all(word in str(caught.value) for word in words)


@given(st.text() | st.lists(st.sampled_from(["two", "red", "circles", "on", "blue"])).map(" ".join))
def test_any_text_is_a_scene_or_a_value_error(prompt):
    try:
        scene = Scene.parse(prompt)
    except ValueError:
        return
    assert scene in all_scenes()


def test_contexts_tell_all_prompts_apart():
    contexts = [text.encode(scene.prompt) for scene in all_scenes()] + [text.encode(" \n")]
    for context in contexts:
        assert context.shape == (1, text.NUM_TOKENS, text.WIDTH)
        assert torch.equal(context.sum(-1), torch.full((1, text.NUM_TOKENS), 2.0))
    assert len(torch.unique(torch.cat(contexts), dim=0)) == len(contexts)


def test_the_split_is_disjoint_and_complete():
    training, held_out = split()
    assert len(held_out) == NUM_HELD_OUT
    assert not set(training) & set(held_out)
    assert sorted(training + held_out) == all_scenes()


def test_the_split_is_always_the_same():
    """The trained weights belong to it."""
    assert split() == split()
    assert [scene.prompt for scene in split()[1][:3]] == [
        "one green square on blue",
        "two red triangles on white",
        "three yellow triangles on cyan",
    ]


def test_every_word_is_in_the_training_prompts():
    training, _ = split()
    for field, words in (("count", (1, 2, 3)), ("colour", COLOURS), ("shape", SHAPES)):
        assert {getattr(scene, field) for scene in training} == set(words)
    assert {scene.background for scene in training} == set(COLOURS)


def test_the_same_seed_draws_the_same_pictures():
    scenes = all_scenes()[::100]
    first, second = (draw(scenes, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (len(scenes), SIZE, SIZE, 3) and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 1
    assert np.array_equal(first, second)
    assert not np.array_equal(first, draw(scenes, np.random.default_rng(4)))
