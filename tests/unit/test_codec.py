"""The codec between the demonstration's pictures and latents: one fitted here, and the model's."""

import numpy as np
import pytest
import torch

from demo.shapes import CODEC, WEIGHTS
from demo.shapes.checker import read
from demo.shapes.codec import CHANNELS, PATCH, Codec
from demo.shapes.scenes import SIZE, all_scenes, draw, split

# Of a latent format with unlike channels, as Wan's is.
MEAN, STD = torch.linspace(-1, 1, CHANNELS), torch.linspace(0.5, 3, CHANNELS)


def drawn(scenes: list, seed: int) -> torch.Tensor:
    return torch.from_numpy(draw(scenes, np.random.default_rng(seed)))


@pytest.fixture(scope="module", params=["fitted here", "the model's"])
def codec(request: pytest.FixtureRequest) -> Codec:
    if request.param == "the model's":
        return Codec.load(WEIGHTS / CODEC)
    return Codec.fit(drawn(split()[0], seed=1), MEAN, STD)


def test_pictures_come_back(codec: Codec):
    scenes = all_scenes()[::3]
    pictures = drawn(scenes, seed=2)
    latents = codec.encode(pictures)
    assert latents.shape == (len(scenes), CHANNELS, 1, SIZE // PATCH, SIZE // PATCH)
    decoded = codec.decode(latents)
    assert decoded.shape == pictures.shape
    assert decoded.min() >= 0 and decoded.max() <= 1
    error = (decoded - pictures).square().mean()
    assert -10 * torch.log10(error) > 34
    pairs = zip(scenes, decoded.numpy(), strict=True)
    right = [read(picture).shows(scene) for scene, picture in pairs]
    assert sum(right) >= 0.98 * len(right)


def test_latents_are_of_order_one_in_the_format():
    pictures = drawn(split()[0], seed=3)
    latents = Codec.fit(pictures, MEAN, STD).encode(pictures).movedim(1, -1)
    normal = ((latents - MEAN) / STD).reshape(-1, CHANNELS)
    assert normal.mean(0).abs().max() < 1e-3
    assert normal.var(0).mean() == pytest.approx(1, abs=1e-3)


def test_a_saved_codec_is_the_same(codec: Codec, tmp_path):
    codec.save(tmp_path / "codec.safetensors")
    loaded = Codec.load(tmp_path / "codec.safetensors")
    pictures = drawn(all_scenes()[:4], seed=4)
    assert torch.equal(loaded.encode(pictures), codec.encode(pictures))


def test_each_patch_is_on_its_own(codec: Codec):
    latents = codec.encode(drawn(all_scenes()[:1], seed=5))
    changed = latents.clone()
    changed[..., 3, 7] += 1
    difference = (codec.decode(changed) - codec.decode(latents)).abs().sum(-1)[0].nonzero()
    rows, columns = difference.T
    assert set((rows // PATCH).tolist()) == {3} and set((columns // PATCH).tolist()) == {7}
