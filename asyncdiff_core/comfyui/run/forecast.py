"""What ComfyUI tells about the coming timesteps, for a stride and a time shift."""

from __future__ import annotations

from typing import Any

import torch

from ...algorithm.evaluator import Forecast, Inputs
from ...algorithm.prediction import Latent
from ..model.calls import ModelCall

AUDIO = "a_timestep"  # LTX-2 gets a second timestep, which differs where only one part is masked


class Forecaster:
    """Makes the Forecast of every evaluation of one sampling run.

    Args:
        model_sampling: ComfyUI's, which turns sigmas into timesteps.
    """

    def __init__(self, model_sampling: Any) -> None:
        self._timestep = model_sampling.timestep
        # sigma -> the timestep that was evaluated with it, and the audio's, by the batch's shape
        self._seen: dict[tuple[float, torch.Size], tuple[torch.Tensor, torch.Tensor | None]] = {}

    def forecast(self, call: ModelCall) -> Forecast | None:
        """The forecast for the evaluation of `call`, or None if its options tell no sigma.

        Coming sigmas are those behind this one in the sampler's list, not a counter's, so that
        partial denoising and schedules of any kind are right. Where a model makes its timestep of
        more than sigma nothing is foreseen.
        """
        options, sigma = call.options, call.sigma
        if sigma is None:
            return None
        args, kwargs = call.inputs_with({})
        timestep = args[1]
        audio_timestep = kwargs.get(AUDIO)
        self._seen[sigma, timestep.shape] = timestep, audio_timestep
        has_one = audio_timestep is None or audio_timestep is timestep
        coming: tuple[float, ...] | None = None
        listed = options.get("sample_sigmas")
        if listed is not None and has_one and self._is_foreseeable(sigma, timestep):
            steps = listed[:-1].tolist()  # the last one is where the last step leads
            if sigma in steps:
                coming = tuple(steps[steps.index(sigma) + 1 :])

        def at(other: float, latent: Latent | None) -> Inputs:
            sigmas = torch.full_like(options["sigmas"], other)
            args, kwargs = call.inputs_with({**options, "sigmas": sigmas})
            shape = timestep.shape
            seen = self._seen.get((other, shape))
            at_other, audio = seen if seen is not None else (self._of(other, timestep),) * 2
            if AUDIO in kwargs:
                kwargs = {**kwargs, AUDIO: audio}
            return (args[0], at_other, *args[2:]), kwargs

        return Forecast(sigma, coming, at)

    def _is_foreseeable(self, sigma: float, timestep: torch.Tensor) -> bool:
        return timestep.ndim == 1 and torch.equal(self._of(sigma, timestep), timestep)

    def _of(self, sigma: float, like: torch.Tensor) -> torch.Tensor:
        sigmas = torch.full(like.shape, sigma, dtype=torch.float32, device=like.device)
        timestep: torch.Tensor = self._timestep(sigmas).float()
        return timestep.to(like.dtype)
