"""A MODEL that was to be spread if it can be, and with what it carries cannot be.

Where the user asked for nothing more than speed (a sampler node, *Schedule* on a stock MODEL), the
stock MODEL then does the work itself, with all that was put on its twin since. Much of what cannot
be spread is only met while a run goes on; the run then begins once more.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sampler_helpers
from comfy.patcher_extension import WrappersMP

from ..errors import UnspreadableError
from ..log import get_logger
from .patches import compilation
from .run.node_text import show_on_node
from .run.steadiness import is_steady

log = get_logger()

KIND, KEY = WrappersMP.OUTER_SAMPLE, "asyncdiff"
KEY_OF_LESS = "asyncdiff_memory"


def stay_local(reason: Exception) -> None:
    """Say that a MODEL stays in ComfyUI's own process, in the log and on the node."""
    log.info("the model stays in ComfyUI's own process: %s", reason)
    show_on_node(f"on one device: {reason}", is_told=True)


def prepare(patcher: Any) -> None:
    """Have `patcher`, whose `stock` is known, fall back on it."""
    others = patcher.wrappers.get(KIND, {})
    patcher.wrappers[KIND] = {KEY: [or_else_local], **others}


def retry_with_less(patcher: Any) -> None:
    """Have `patcher` sample once more with less memory where a worker's device runs out of it."""
    patcher.wrappers.setdefault(KIND, {})[KEY_OF_LESS] = [or_else_with_less]


def or_else_with_less(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """A wrapper of `KIND`: samples, and if a worker's device runs out of memory, once more by the
    next plan, from the beginning.

    Raises:
        OOM_EXCEPTION: that plan needs too much as well, or there is none.
    """
    guider = executor.class_obj
    remote = getattr(guider.model_patcher, "remote", None)
    if remote is None:
        return executor(*args, **kwargs)
    conds = _copied(guider.conds)
    # As `outer_sample` has them: noise, latent, sampler, sigmas, denoise_mask.
    sampler, mask = ((*args, *[None] * 5)[index] for index in (2, 4))
    mask = kwargs.get("denoise_mask", mask)
    remote.is_steady = is_steady(sampler, mask, guider.model_options)
    try:
        return executor(*args, **kwargs)
    except comfy.model_management.OOM_EXCEPTION as error:
        if not remote.shrink(error.__cause__):
            raise
        text = str(error)
    log.warning("out of memory, once more by a plan that needs less: %s", text)
    show_on_node("out of memory: once more by a plan that needs less")
    guider.conds = conds
    return executor(*args, **kwargs)


def _copied(conds: Any) -> Any:
    """The conds of a guider, which sampling changes."""
    return {kind: [dict(cond) for cond in of_kind] for kind, of_kind in conds.items()}


def or_else_local(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """A wrapper of `KIND`: samples with the spread MODEL of the guider, or else with its stock one.

    It is the outermost one, since others may change the model of the guider's MODEL.

    Raises:
        ModelChangedError: with both, something would be lost that a node has changed on the modules
            of the spread MODEL.
    """
    guider = executor.class_obj
    patcher = guider.model_patcher
    if getattr(patcher, "stock", None) is None:
        return executor(*args, **kwargs)
    conds = _copied(guider.conds)
    try:
        return executor(*args, **kwargs)
    except UnspreadableError as error:
        stay_local(error)  # and not kept, since its traceback holds this very frame
    patcher.remote.unload()
    local = patcher.local()
    if local.is_dynamic() and any(map(comfy.sampler_helpers.cond_has_hooks, conds.values())):
        local = local.get_non_dynamic_delegate()  # as a guider does it
    options = guider.model_options

    def watched(executor: Any, *args: Any, **kwargs: Any) -> Any:
        patcher.remote.require_no_changes_here()
        return executor(*args, **kwargs)

    wrappers = options["transformer_options"]["wrappers"].setdefault(compilation.KIND, {})
    if compilation.KEY in wrappers:
        wrappers[compilation.KEY] = [compilation.here(w) for w in wrappers[compilation.KEY]]
    wrappers[KEY] = [watched]
    guider.conds, guider.model_patcher = conds, local
    try:
        return executor(*args, **kwargs)
    finally:
        guider.model_patcher = patcher
