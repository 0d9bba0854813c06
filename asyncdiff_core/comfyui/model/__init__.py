"""The diffusion model as ComfyUI has it: loading it, its skeleton, and where its blocks are."""
