"""Which evaluations at one sigma belong together."""

from __future__ import annotations

import torch

from asyncdiff_core.algorithm.streams import Streams


def noise(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_one_evaluation_per_step_is_one_stream() -> None:
    streams = Streams(lambda: 16)
    for step in range(4):
        streams.begin_call()
        assert streams.of("key", 10.0 - step, noise(step)) == 0


def test_tiles_within_a_call_are_streams_even_if_they_look_alike() -> None:
    streams = Streams(lambda: 16)
    for step in range(3):
        streams.begin_call()
        assert [streams.of("key", 3.0 - step, noise(0)) for _ in range(9)] == list(range(9))


def test_tiles_in_calls_of_their_own_are_streams() -> None:
    streams = Streams(lambda: 16)
    for step in range(3):
        numbers = []
        for tile in range(4):
            streams.begin_call()
            numbers.append(streams.of("key", 3.0 - step, noise(tile)))
        assert numbers == [0, 1, 2, 3]


def test_a_latent_that_is_improved_goes_on_in_its_stream() -> None:
    """Heun's method: every sigma but the first one is come back to."""
    streams = Streams(lambda: 16)
    for step in range(4):
        for correction in (0.0, 0.1):
            streams.begin_call()
            latent = noise(step) + correction * noise(9)
            assert streams.of("key", 3.0 - step, latent) == 0


def test_improved_tiles_go_on_in_theirs() -> None:
    streams = Streams(lambda: 16)
    for step in range(3):
        for correction in (0.0, 0.1):
            streams.begin_call()
            latents = [noise(tile) + correction * noise(99) for tile in range(3)]
            assert [streams.of("key", 3.0 - step, x) for x in latents] == [0, 1, 2]


def test_keys_count_for_themselves() -> None:
    streams = Streams(lambda: 16)
    assert [streams.of(key, 1.0, noise(0)) for key in ("a", "b", "a")] == [0, 0, 1]


def test_without_a_sigma_nothing_is_told_apart() -> None:
    streams = Streams(lambda: 16)
    assert [streams.of("key", None, noise(n)) for n in range(3)] == [0, 0, 0]


def test_what_has_no_place_is_told_so_and_keeps_being_told() -> None:
    streams = Streams(lambda: 3)
    for step in range(2):
        streams.begin_call()
        numbers = [streams.of("key", 2.0 - step, noise(n)) for n in range(5)]
        assert numbers == [0, 1, 2, None, None]
    assert streams.of("another", 1.0, noise(0)) == 0  # the first of a key has a place always
