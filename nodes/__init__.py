"""The nodes: thin V3 classes that translate their inputs and call asyncdiff_core.comfyui."""
