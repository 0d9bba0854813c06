"""What ComfyUI tells about the coming timesteps, for a stride and a time shift."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...algorithm.evaluator import Forecast, Inputs
from ...algorithm.prediction import Latent
from ..model.calls import ModelCall

AUDIO = "a_timestep"  # LTX-2 gets a second timestep, which differs where only one part is masked


class Forecaster:
    """Makes the Forecast of every evaluation of one sampling run.

    Args:
        model_sampling: ComfyUI's, which turns sigmas into timesteps, and scales latents.
        predicts: find out whether stages may get drafts.
    """

    def __init__(self, model_sampling: Any, *, predicts: bool = False) -> None:
        self._predicts = predicts
        self._model_sampling = model_sampling
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
        steps_left = None
        listed = options.get("sample_sigmas")
        if listed is not None:
            steps = listed[:-1].tolist()  # the last one is where the last step leads
            steps_left = sum(step < sigma for step in steps)
            if has_one and sigma in steps and self._is_foreseeable(sigma, timestep):
                coming = tuple(steps[steps.index(sigma) + 1 :])

        def at(other: float, latent: Latent | None) -> Inputs:
            sigmas = torch.full_like(options["sigmas"], other)
            args, kwargs = call.inputs_with({**options, "sigmas": sigmas})
            shape = timestep.shape
            seen = self._seen.get((other, shape))
            at_other, audio = seen if seen is not None else (self._of(other, timestep),) * 2
            if AUDIO in kwargs:
                kwargs = {**kwargs, AUDIO: audio}
            x = args[0] if latent is None else self._input(other, latent[0], args[0])
            return (x, at_other, *args[2:]), kwargs

        return Forecast(
            *(sigma, coming, at),
            latent=None if call.sampled is None else (call.sampled,),
            is_replaceable=self._predicts and self._makes_input(call.sampled, sigma, args[0]),
            steps_left=steps_left,
        )

    def _makes_input(self, sampled: torch.Tensor | None, sigma: float, x: Any) -> bool:
        """Whether the model's input `x` can be made of the latent, and so of a draft of it.

        A wrapper or a class of models may make it in another way.
        """
        if sampled is None or sampled.dtype != torch.float32:
            return False
        try:
            made = self._input(sigma, sampled, x)
        except (RuntimeError, ValueError, IndexError):
            return False
        same = pytree.tree_map(torch.equal, made, x) if _shapes(made) == _shapes(x) else False
        return all(pytree.tree_leaves(same))

    def _input(self, sigma: float, latent: torch.Tensor, like: Any) -> Any:
        """What the model gets for a latent at `sigma`, where for another one it gets `like`.

        Behind the channels of the latent come those that do not change in a run: a mask, a picture.
        Several latents in one (video and audio) are taken apart.
        """
        sigmas = torch.full(latent.shape[:1], sigma, dtype=torch.float32, device=latent.device)
        x = self._model_sampling.calculate_input(sigmas, latent)
        if isinstance(like, list):
            sizes = [part[0].numel() for part in like]
            parts = x.reshape(len(x), -1).split(sizes, dim=1)
            return [p.reshape(b.shape).to(b.dtype) for p, b in zip(parts, like, strict=True)]
        more = like[:, x.shape[1] :]
        x = torch.cat([x.to(like.device), more.to(x.dtype)], dim=1) if more.shape[1] else x
        return x.to(like.device, like.dtype)

    def _is_foreseeable(self, sigma: float, timestep: torch.Tensor) -> bool:
        return timestep.ndim == 1 and torch.equal(self._of(sigma, timestep), timestep)

    def _of(self, sigma: float, like: torch.Tensor) -> torch.Tensor:
        sigmas = torch.full(like.shape, sigma, dtype=torch.float32, device=like.device)
        timestep: torch.Tensor = self._model_sampling.timestep(sigmas).float()
        return timestep.to(like.dtype)


def _shapes(tree: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in pytree.tree_leaves(tree)]
