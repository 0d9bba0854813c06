"""Calls in parts for replicas, and the forecast of sigmas. Neither needs ComfyUI."""

from __future__ import annotations

from typing import Any

import torch

from asyncdiff_core.comfyui.model.calls import ModelCall, gather, scatter
from asyncdiff_core.comfyui.run.forecast import AUDIO, Forecaster


def test_chunks_go_by_cond_index() -> None:
    assert scatter([1, 0], 2) == [[1], [0]]
    assert scatter([0, 1, 0, 0], 2) == [[0, 2, 3], [1]]
    assert scatter([0, 1, 2], 2) == [[0, 2], [1]]
    assert scatter([0, 0], 2) == [[0, 1]]
    assert scatter([1, 0], 3) == [[1], [0]]
    assert scatter([3, 5, 7], 3) == [[0], [1], [2]]


def inputs(options: Any) -> Any:
    x = torch.arange(12.0).reshape(6, 2)  # three chunks of two rows
    kwargs = {
        "context": torch.arange(6.0).reshape(6, 1),
        "control": {"output": [torch.arange(6.0), None, torch.ones(1, 3)]},
        "scalar": torch.tensor(6.0),
        "transformer_options": options,
    }
    return (x, torch.arange(6.0)), kwargs


def test_a_part_is_the_rows_of_its_chunks() -> None:
    options = {"sample_sigmas": torch.arange(6.0), "uuids": [7, 8, 9], "cond_or_uncond": [1, 0, 1]}
    whole, _ = inputs({})
    part = ModelCall(whole[0], options, inputs).of_chunks([0, 2])
    args, kwargs = part.inputs
    rows = [0, 1, 4, 5]
    assert torch.equal(part.x, whole[0][rows]) and torch.equal(part.latent, part.x)
    assert part.lane_key == ((7, 9), (1, 1), ((4, 2),))
    assert torch.equal(args[0], whole[0][rows]) and torch.equal(args[1], whole[1][rows])
    assert torch.equal(kwargs["context"].flatten(), torch.tensor([0.0, 1.0, 4.0, 5.0]))
    assert torch.equal(kwargs["control"]["output"][0], torch.tensor([0.0, 1.0, 4.0, 5.0]))
    assert kwargs["control"]["output"][1] is None
    assert kwargs["control"]["output"][2].shape == (1, 3)
    assert kwargs["scalar"] == 6.0
    dealt = kwargs["transformer_options"]
    assert dealt["uuids"] == [7, 9] and dealt["cond_or_uncond"] == [1, 1]
    # As long as the batch by chance, and no batch.
    assert torch.equal(dealt["sample_sigmas"], torch.arange(6.0))


def test_gather_undoes_scatter() -> None:
    whole = torch.randn(6, 3)
    parts = scatter([0, 1, 0], 2)
    outputs = [torch.cat([whole.chunk(3)[chunk] for chunk in hand]) for hand in parts]
    assert torch.equal(gather(outputs, parts), whole)
    both = gather([[output, 2 * output] for output in outputs], parts)  # video and audio
    assert torch.equal(both[0], whole) and torch.equal(both[1], 2 * whole)


SAME = object()  # as the timestep of the video


class Sampling:
    """A model_sampling whose timesteps are a thousand times its sigmas."""

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma * 1000


def call(
    sigma: float, listed: list[float], timestep: torch.Tensor | None = None, audio: Any = None
) -> Any:
    options = {"sigmas": torch.tensor([sigma]), "sample_sigmas": torch.tensor(listed)}
    t = torch.full((2,), float(torch.tensor(sigma) * 1000)) if timestep is None else timestep

    def with_options(options: Any) -> Any:
        more = {} if audio is None else {AUDIO: t if audio is SAME else audio}
        return (torch.zeros(2, 4), t), {"transformer_options": options, **more}

    return Forecaster(Sampling()).forecast(ModelCall(torch.zeros(2, 4), options, with_options))


def test_the_coming_sigmas_are_those_behind_this_one() -> None:
    assert call(1.0, [1.0, 0.5, 0.25, 0.0]).coming == (0.5, 0.25)
    assert call(0.25, [1.0, 0.5, 0.25, 0.0]).coming == ()
    assert call(0.7, [1.0, 0.5, 0.25, 0.0]).coming is None


def test_inputs_at_another_sigma() -> None:
    forecast = call(1.0, [1.0, 0.5, 0.0])
    args, kwargs = forecast.at(0.5, None)
    assert torch.equal(args[1], torch.tensor([500.0, 500.0]))
    assert torch.equal(kwargs["transformer_options"]["sigmas"], torch.tensor([0.5]))


def test_a_timestep_of_its_own_kind_is_not_foreseen() -> None:
    """Models that make a timestep per token, or scale it by something else than sigma."""
    assert call(1.0, [1.0, 0.5, 0.0], torch.full((2, 3), 1000.0)).coming is None
    assert call(1.0, [1.0, 0.5, 0.0], torch.full((2,), 999.0)).coming is None


def test_the_timestep_of_the_audio_goes_along() -> None:
    forecast = call(1.0, [1.0, 0.5, 0.0], audio=SAME)
    assert forecast.coming == (0.5,)
    assert torch.equal(forecast.at(0.5, None)[1][AUDIO], torch.tensor([500.0, 500.0]))
    masked = call(1.0, [1.0, 0.5, 0.0], audio=torch.zeros(2, 3, 1))
    assert masked.coming is None


def test_no_sigma_no_forecast() -> None:
    unknown = ModelCall(torch.zeros(2, 4), {}, lambda options: ((), {}))
    assert Forecaster(Sampling()).forecast(unknown) is None
