"""Runs of a sampler: from a call of the diffusion model to the group that computes it."""
