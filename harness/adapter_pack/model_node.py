"""What nodes of the tests that change a MODEL have in common."""

from __future__ import annotations

from typing import Any


class ModelNode:
    """Takes a MODEL and returns a changed one."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"model": ("MODEL",)}}
