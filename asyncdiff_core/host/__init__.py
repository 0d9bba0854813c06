"""The only modules that import ComfyUI: the adapter between it and the engine.

`stage_weights` runs in the workers, everything else in the ComfyUI process.
"""
