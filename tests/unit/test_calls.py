"""Calls in parts for replicas, and the forecast of sigmas. Neither needs ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asyncdiff_core.comfyui.model.calls import (
    SAMPLED,
    ModelCall,
    Part,
    gather,
    scatter,
    with_sampled,
)
from asyncdiff_core.comfyui.run.forecast import AUDIO, Forecaster


def test_chunks_go_by_cond_index() -> None:
    def chunks(conds: list[int], replicas: int) -> list[tuple[int, ...]]:
        parts = scatter(conds, replicas)
        assert [part.replica for part in parts] == list(range(len(parts)))
        assert all(part.latent is None for part in parts)
        return [part.chunks for part in parts]

    assert chunks([1, 0], 2) == [(1,), (0,)]
    assert chunks([0, 1, 0, 0], 2) == [(0, 2, 3), (1,)]
    assert chunks([0, 1, 2], 2) == [(0, 2), (1,)]
    assert chunks([0, 0], 2) == [(0, 1)]
    assert chunks([1, 0], 3) == [(1,), (0,)]
    assert chunks([3, 5, 7], 3) == [(0,), (1,), (2,)]


def test_each_latent_is_a_part() -> None:
    assert scatter([1, 0], 1, 2) == [
        Part((0,), 0, 0),
        Part((0,), 1, 0),
        Part((1,), 0, 0),
        Part((1,), 1, 0),
    ]
    assert scatter([0, 1, 0], 2, 1) == [Part((0,), 0, 0), Part((2,), 0, 0), Part((1,), 0, 1)]
    assert [part.replica for part in scatter([0], 2, 3)] == [0, 1, 0]  # one cond alone
    assert [part.rows(3) for part in scatter([0, 1], 1, 3)] == [[0], [1], [2], [3], [4], [5]]


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
    part = ModelCall(whole[0], options, inputs).of(Part((0, 2)))
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
    for parts in scatter([0, 1, 0], 2), scatter([0, 1, 0], 2, 2):
        outputs = [whole[part.rows(2)] for part in parts]
        assert torch.equal(gather(outputs, parts, 2), whole)
        both = gather([[output, 2 * output] for output in outputs], parts, 2)  # video and audio
        assert torch.equal(both[0], whole) and torch.equal(both[1], 2 * whole)


SAME = object()  # as the timestep of the video


class Sampling:
    """A model_sampling whose timesteps are a thousand times its sigmas."""

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma * 1000

    def calculate_input(self, sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x / (sigma.view(-1, *[1] * (x.ndim - 1)) ** 2 + 1) ** 0.5


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


# Latents as the sampler has them ----------------------------------------------------------------


def with_latent(x: Any, sampled: torch.Tensor | None, *, predicts: bool = True) -> Any:
    """The forecast for a model's input `x` that was made of `sampled` at sigma 0.5."""
    options = {"sigmas": torch.tensor([0.5])}

    def inputs_with(options: Any) -> Any:
        return (x, torch.full((2,), 500.0)), {"transformer_options": options}

    call = ModelCall(x, options, inputs_with, sampled)
    return Forecaster(Sampling(), predicts=predicts).forecast(call)


def scaled(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return Sampling().calculate_input(torch.full((2,), sigma), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_draft_is_scaled_for_its_sigma(dtype: torch.dtype) -> None:
    sampled, draft = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    forecast = with_latent(scaled(sampled, 0.5).to(dtype), sampled)
    assert forecast.latent[0] is sampled and forecast.is_replaceable
    (x, t), _ = forecast.at(0.25, (draft,))
    assert torch.equal(x, scaled(draft, 0.25).to(dtype)) and t[0] == 250.0
    (x, _), _ = forecast.at(0.25, None)
    assert torch.equal(x, scaled(sampled, 0.5).to(dtype))


def test_channels_behind_those_of_the_latent_stay() -> None:
    """A mask, or the picture to go on with."""
    sampled, draft, more = torch.randn(2, 4, 3), torch.randn(2, 4, 3), torch.randn(2, 5, 3).half()
    x = torch.cat([scaled(sampled, 0.5).half(), more], dim=1)
    forecast = with_latent(x, sampled)
    (x, _), _ = forecast.at(0.25, (draft,))
    assert torch.equal(x, torch.cat([scaled(draft, 0.25).half(), more], dim=1))


def test_video_and_audio_are_one_latent_of_the_sampler() -> None:
    sampled, draft = torch.randn(2, 1, 20), torch.randn(2, 1, 20)

    def apart(x: torch.Tensor) -> list[torch.Tensor]:
        return [x[:, 0, :12].reshape(2, 3, 4), x[:, 0, 12:].reshape(2, 2, 4)]

    forecast = with_latent(apart(scaled(sampled, 0.5)), sampled)
    (x, _), _ = forecast.at(0.25, (draft,))
    assert all(map(torch.equal, x, apart(scaled(draft, 0.25))))


@pytest.mark.parametrize("what", ["scaled otherwise", "half", "other shape", "unknown", "off"])
def test_what_the_input_cannot_be_made_of_is_not_replaced(what: str) -> None:
    """So nothing is predicted, rather than something else."""
    sampled: torch.Tensor | None = torch.randn(2, 4, 3)
    x = scaled(sampled, 0.5)
    if what == "scaled otherwise":
        x = x * 1.001
    if what == "other shape":
        x = x[:, :3]
    if what == "half":
        sampled = sampled.half()
    if what == "unknown":
        sampled = None
    forecast = with_latent(x, sampled, predicts=what != "off")
    assert not forecast.is_replaceable
    assert forecast.latent is None if sampled is None else forecast.latent[0] is sampled


def test_a_part_of_the_batch_has_its_part_of_the_latent() -> None:
    sampled = torch.randn(4, 4, 3)
    options = {"sigmas": torch.tensor([0.5]), "cond_or_uncond": [0, 1], "uuids": ["a", "b"]}
    whole = ModelCall(sampled, options, lambda options: ((sampled,), {}), sampled)
    part = whole.of(Part((1,)))
    assert part.sampled is not None and torch.equal(part.sampled, sampled[2:])


def test_the_wrapper_puts_the_latent_into_the_options() -> None:
    def apply_model(x: Any, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    x = torch.randn(2, 4)
    given = {"a": 1}
    args, kwargs = with_sampled(apply_model, x, "t", transformer_options=given)
    assert (args, kwargs) == (("t",), {"transformer_options": {"a": 1, SAMPLED: x}})
    args, kwargs = with_sampled(apply_model, x, "t", None, None, None, given)
    assert (args, kwargs) == (("t", None, None, None, {"a": 1, SAMPLED: x}), {})
    assert given == {"a": 1}
