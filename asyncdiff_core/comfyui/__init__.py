"""The only modules that import ComfyUI: the adapter between it and the engine.

All of them run in the ComfyUI process, about half in the workers too: `stage_weights`, by which a
worker builds its model and loads its stage, what that imports, and `motion` where a MODEL needs it.
"""
