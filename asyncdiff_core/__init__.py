"""AsyncDiff's engine: a diffusion model cut into stages that run in worker processes.

Everything outside :mod:`asyncdiff_core.comfyui` imports torch and the standard library only;
ComfyUI is imported by :mod:`asyncdiff_core.comfyui` alone.
"""
