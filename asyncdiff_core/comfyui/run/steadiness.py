"""Which sampling runs go on as they have begun, so that the next evaluations can be foreseen."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP

from ..patches import compilation

# The functions of samplers that evaluate once per step, in the order of their sigmas, and put no
# new noise into the latent, so that the next ones can be predicted: docs/samplers.md.
STEADY = {
    *("sample_euler", "sample_euler_cfg_pp", "sample_lms", "sample_dpmpp_2m"),
    *("sample_dpmpp_2m_cfg_pp", "sample_ipndm", "sample_ipndm_v", "sample_deis"),
    *("sample_res_multistep", "sample_res_multistep_cfg_pp", "sample_gradient_estimation"),
    *("sample_gradient_estimation_cfg_pp", "sample_unipc", "sample_unipc_bh2"),
}

# The keys of wrappers around the model that change no input: this pack's, and torch.compile's.
KNOWN_WRAPPERS = {"asyncdiff", compilation.KEY}


def is_steady(sampler: Any, denoise_mask: Any, model_options: Any) -> bool:
    """Whether a sampler of ComfyUI goes on as it has begun, step by step.

    Functions around the model, of nodes, may give it other inputs in every step. What comes of that
    is known when the step comes, and not before.
    """
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    around = {"model_function_wrapper"} & model_options.keys()
    around |= wrappers.get(WrappersMP.APPLY_MODEL, {}).keys() - KNOWN_WRAPPERS
    return name in STEADY and not (sampler.extra_options or around) and denoise_mask is None
