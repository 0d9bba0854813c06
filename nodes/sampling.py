"""Nodes that choose the schedule, and samplers that include them."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

import nodes as comfy_nodes

from ..asyncdiff_core.algorithm.schedule import AUTO_WARM_UP, AsyncSchedule
from ..asyncdiff_core.comfyui.distribute import (
    ensure_distributed,
    require_finite,
    with_schedule,
)
from ..asyncdiff_core.errors import InputError
from .loaders import CATEGORY

PREDICTION = ["auto", "off"]


def schedule_inputs() -> list[io.Input]:
    """The inputs of an asynchronous schedule."""
    return [
        io.Int.Input(
            "warm_up",
            default=AUTO_WARM_UP,
            min=AUTO_WARM_UP,
            max=10000,
            tooltip="How many first evaluations (with most samplers, steps) run synchronously, "
            "exactly as on one device. More: closer to the single-device image. Fewer: faster. 0: "
            "one for every eight steps, three at most.",
        ),
        io.Boolean.Input(
            "time_shift",
            default=False,
            advanced=True,
            optional=True,
            tooltip="Give every evaluation after the warm-up the timestep of the one before. Can "
            "help against residual noise with many stages and a stride. Without prediction.",
        ),
        io.Combo.Input(
            "prediction",
            options=PREDICTION,
            default=PREDICTION[0],
            advanced=True,
            optional=True,
            tooltip="auto: the stages work ahead on predicted latents, as long as these are nearer "
            "to what comes than the last one. off: on the last one, as AsyncDiff was published.",
        ),
        io.Int.Input(
            "cool_down",
            default=0,
            min=0,
            max=10000,
            advanced=True,
            optional=True,
            tooltip="How many of the last steps run synchronously.",
        ),
        io.Float.Input(
            "tolerance",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.001,
            round=False,
            advanced=True,
            optional=True,
            tooltip="Evaluations whose latent is farther than this from what the stages have "
            "worked on (0.05: 5 %) run synchronously, and the warm-up ends by itself. 0: no limit.",
        ),
        io.Boolean.Input(
            "split_batch",
            default=False,
            advanced=True,
            optional=True,
            tooltip="Evaluate the latents of a batch, and cond and uncond, one by one: in "
            "synchronous steps they pass the stages one behind the other, which is exact and "
            "faster. With a warm-up of all steps nothing is approximated.",
        ),
    ]


def schedule_of(inputs: dict[str, Any]) -> AsyncSchedule:
    """The schedule that a node's inputs ask for, which are taken out of `inputs`.

    A program may leave out those that are optional.

    Raises:
        InputError: one of them is no finite number, or no choice.
        ScheduleError: they do not fit each other.
    """
    prediction = inputs.pop("prediction", PREDICTION[0])
    tolerance = inputs.pop("tolerance", 0.0)
    time_shift = inputs.pop("time_shift", False)
    require_finite(tolerance=tolerance)
    if prediction not in PREDICTION:
        raise InputError(f"the input 'prediction' is {prediction!r}; it may be auto or off.")
    return AsyncSchedule(
        inputs.pop("warm_up"),
        time_shift,
        prediction=prediction == "auto" and not time_shift,
        cool_down=inputs.pop("cool_down", 0),
        tolerance=tolerance,
        split_batch=bool(inputs.pop("split_batch", False)),
    )


def sampler_inputs() -> list[io.Input]:
    """The inputs that KSampler and KSamplerAdvanced share, from `steps` to `latent_image`."""
    return [
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="The number of steps."),
        io.Float.Input(
            "cfg",
            default=8.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="How strongly the image follows the prompt.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            tooltip="The sampling algorithm.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            tooltip="How the noise is reduced from step to step.",
        ),
        io.Conditioning.Input("positive", tooltip="What the image should contain."),
        io.Conditioning.Input("negative", tooltip="What the image should not contain."),
        io.Latent.Input("latent_image", tooltip="The latent image to denoise."),
    ]


def model_input() -> io.Input:
    """A MODEL, distributed or not."""
    return io.Model.Input(
        "model",
        tooltip="The MODEL to sample. One of ComfyUI's own is spread over all devices, if it can "
        "be.",
    )


class AsyncDiffSchedule(io.ComfyNode):
    """Set the schedule of a distributed MODEL, for any of ComfyUI's sampler nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffSchedule",
            display_name="Schedule (AsyncDiff)",
            category=CATEGORY,
            description="Sets how many first steps of a distributed MODEL run synchronously, for "
            "use with any sampler node.",
            search_aliases=["async schedule", "warm up", "multi gpu", "parallel", "faster"],
            inputs=[model_input(), *schedule_inputs()],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, **schedule: Any) -> io.NodeOutput:
        wanted = schedule_of(schedule)
        return io.NodeOutput(with_schedule(ensure_distributed(model), wanted))


class AsyncDiffKSampler(io.ComfyNode):
    """KSampler on several devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffKSampler",
            display_name="KSampler (AsyncDiff)",
            category=CATEGORY,
            description="KSampler, with the model's stages working at the same time. A MODEL of "
            "ComfyUI's own loaders is spread over all devices by itself.",
            search_aliases=["multi gpu ksampler", "parallel ksampler", "async ksampler", "faster"],
            inputs=[
                model_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The seed of the noise.",
                ),
                *sampler_inputs(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the image is made anew.",
                ),
                *schedule_inputs(),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, **sampling: Any) -> io.NodeOutput:
        require_finite(cfg=sampling["cfg"], denoise=sampling["denoise"])
        schedule = schedule_of(sampling)
        model = with_schedule(ensure_distributed(model), schedule)
        return io.NodeOutput(*comfy_nodes.KSampler().sample(model, **sampling))


class AsyncDiffKSamplerAdvanced(io.ComfyNode):
    """KSampler (Advanced) on several devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffKSamplerAdvanced",
            display_name="KSampler Advanced (AsyncDiff)",
            category=CATEGORY,
            description="KSampler (Advanced), with the model's stages working at the same time. A "
            "MODEL of ComfyUI's own loaders is spread over all devices by itself.",
            search_aliases=[
                "multi gpu ksampler advanced",
                "parallel ksampler advanced",
                "async ksampler advanced",
            ],
            inputs=[
                model_input(),
                io.Combo.Input(
                    "add_noise",
                    options=["enable", "disable"],
                    tooltip="Whether noise is added before the first step.",
                ),
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The seed of the noise.",
                ),
                *sampler_inputs(),
                io.Int.Input(
                    "start_at_step", default=0, min=0, max=10000, tooltip="The first step to run."
                ),
                io.Int.Input(
                    "end_at_step",
                    default=10000,
                    min=0,
                    max=10000,
                    tooltip="The step before which to stop.",
                ),
                io.Combo.Input(
                    "return_with_leftover_noise",
                    options=["disable", "enable"],
                    tooltip="Whether the noise of the steps that were not run is left in.",
                ),
                *schedule_inputs(),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, **sampling: Any) -> io.NodeOutput:
        require_finite(cfg=sampling["cfg"])
        schedule = schedule_of(sampling)
        model = with_schedule(ensure_distributed(model), schedule)
        return io.NodeOutput(*comfy_nodes.KSamplerAdvanced().sample(model, **sampling))
