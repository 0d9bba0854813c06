"""The only modules that import ComfyUI: the adapter between it and the engine.

All of them run in ComfyUI's process but `stage_model`, by which a worker builds its model and loads
its stage. What that one imports runs in both, and so does `motion`.
"""
