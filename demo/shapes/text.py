"""Prompts as a transformer's context: what a text encoder would do, for a closed vocabulary."""

from __future__ import annotations

import torch

from .scenes import COLOURS, COUNTS, SHAPES, Scene

WORDS = ("", *COUNTS, *COLOURS, *SHAPES)  # the empty one stands for no prompt at all
NUM_TOKENS = 4  # count, colour, shape, background
WIDTH = 32


def encode(prompt: str) -> torch.Tensor:
    """Context of a prompt, or of none if it is empty: [1, NUM_TOKENS, WIDTH].

    Each token has a one for its word and a one for its place.

    Raises:
        ValueError: the prompt is not of the closed vocabulary.
    """
    words = [""] * NUM_TOKENS
    if prompt.strip():
        scene = Scene.parse(prompt)
        words = [COUNTS[scene.count - 1], scene.colour, scene.shape, scene.background]
    context = torch.zeros(1, NUM_TOKENS, WIDTH)
    for place, word in enumerate(words):
        context[0, place, WORDS.index(word)] = 1
        context[0, place, len(WORDS) + place] = 1
    return context
