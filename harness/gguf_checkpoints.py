"""Small GGUF files, as the converters of ComfyUI-GGUF write them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from . import checkpoints

Q = gguf.GGMLQuantizationType
KINDS = {"q8_0": Q.Q8_0, "q4_k": Q.Q4_K, "f16": Q.F16, "bf16": Q.BF16}
Q4_K_VALUES, Q4_K_BYTES = gguf.GGML_QUANT_SIZES[Q.Q4_K]


def write_flux(path: Path, kind: str) -> Path:
    """Write the Flux of `checkpoints.flux` in one of KINDS.

    Vectors stay fp32, and what the kind cannot pack is Q8_0, as in the files that people have.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    writer = gguf.GGUFWriter(unfinished, "flux")
    draw = np.random.default_rng(3)
    for name, weight in checkpoints.flux().items():
        values, packed = weight.numpy(), KINDS[kind]
        if weight.ndim < 2:
            writer.add_tensor(name, values)
            continue
        if packed is Q.Q4_K and values.shape[-1] % Q4_K_VALUES:
            packed = Q.Q8_0
        data = _q4_k(values, draw) if packed is Q.Q4_K else gguf.quants.quantize(values, packed)
        writer.add_tensor(name, data, raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.replace(path)


def _q4_k(values: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Random blocks of Q4_K with the size of `values`: the package cannot pack this kind.

    A block of 256: its scale and that of its minima as fp16, 12 bytes of scales, 128 of values.
    """
    shape = (*values.shape[:-1], values.shape[-1] // Q4_K_VALUES, Q4_K_BYTES)
    blocks = draw.integers(0, 256, shape, dtype=np.uint8)
    # A value is up to scale * 63 * 15, less minimum * 63.
    scale = np.float16(4 * values.std() / (63 * 15))
    blocks[..., 0:2] = np.array([scale]).view(np.uint8)
    blocks[..., 2:4] = np.array([scale * np.float16(7.5)]).view(np.uint8)
    return blocks.reshape(*values.shape[:-1], -1)
