"""What stands in for autoencoders and image and audio encoders, which are too large for a test."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - everyone calls it that


class StandInVAE:
    """Latents of the right shape: the picture made small, in as many channels as there are."""

    def __init__(self, channels: int, dims: int, spatial: int, temporal: int) -> None:
        self.latent_channels = channels
        self.latent_dim = dims
        self.output_channels = 3
        self.spatial, self.temporal = spatial, temporal
        self.downscale_index_formula = self.upscale_index_formula = (temporal, spatial, spatial)
        self.downscale_ratio = self.upscale_ratio = (
            lambda frames: (frames - 1) // temporal + 1,
            spatial,
            spatial,
        )
        self.device = self.output_device = torch.device("cpu")
        self.vae_dtype = torch.float32
        self.first_stage_model = types.SimpleNamespace()

    def encode(self, pixels: torch.Tensor, **_: Any) -> torch.Tensor:
        frames = pixels.reshape(-1, *pixels.shape[-3:])[..., :3].movedim(-1, 1).float()
        size = [max(1, edge // self.spatial) for edge in frames.shape[-2:]]
        small = F.adaptive_avg_pool2d(frames, size)
        channels = [small[:, n % 3] * (1 + n) / self.latent_channels for n in range(16)]
        latent = torch.stack(channels, 1).repeat(1, -(-self.latent_channels // 16), 1, 1)
        latent = latent[:, : self.latent_channels]
        if self.latent_dim == 2:
            return latent
        return latent[:: self.temporal].movedim(0, 1)[None]

    def encode_tiled(self, pixels: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.encode(pixels)

    def decode(self, latent: torch.Tensor, **_: Any) -> torch.Tensor:
        """A picture of the right size."""
        if latent.ndim == 4:
            latent = latent.unsqueeze(2)
        num_frames = (latent.shape[2] - 1) * self.temporal + 1
        size = [edge * self.spatial for edge in latent.shape[-2:]]
        frames = F.interpolate(latent[:, :3].float(), size=(num_frames, *size))
        return frames.movedim(1, -1)[0].sigmoid()

    decode_tiled = decode

    def vae_encode_crop_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def spacial_compression_encode(self) -> int:
        return self.spatial

    spacial_compression_decode = spacial_compression_encode

    def temporal_compression_decode(self) -> int | None:
        return self.temporal if self.latent_dim == 3 else None

    def throw_exception_if_invalid(self) -> None:
        pass


class Output(dict[str, Any]):
    """What an image encoder returns: by attribute, by key and by number."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def vision_output(width: int, tokens: int, hidden: int, image_size: int) -> Output:
    draw = torch.Generator().manual_seed(17)
    return Output(
        image_embeds=torch.randn(1, width, generator=draw),
        last_hidden_state=torch.randn(1, tokens, hidden, generator=draw),
        penultimate_hidden_states=torch.randn(1, tokens, hidden, generator=draw),
        all_hidden_states=torch.randn(1, 24, tokens, hidden, generator=draw),
        mm_projected=None,
        image_sizes=[(3, image_size, image_size)],
    )


def _numbers(*names: str) -> dict[str, Any]:
    return {name: ("INT", {"min": 0, "max": 2**20}) for name in names}


class StandIn:
    """A node that makes one."""

    FUNCTION = "make"
    CATEGORY = "testing"
    INPUTS: tuple[str, ...]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": _numbers(*cls.INPUTS)}


class TestVAE(StandIn):
    RETURN_TYPES = ("VAE",)
    INPUTS = ("channels", "dims", "spatial", "temporal")

    def make(self, **sizes: int) -> tuple[Any]:
        return (StandInVAE(**sizes),)


class TestClipVision(StandIn):
    """An image encoder that sees the same in every picture."""

    RETURN_TYPES = ("CLIP_VISION",)
    INPUTS = ("width", "tokens", "hidden", "image_size")

    def make(self, **sizes: int) -> tuple[Any]:
        return (types.SimpleNamespace(encode_image=lambda *_, **__: vision_output(**sizes)),)


class TestClipVisionOutput(StandIn):
    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)
    INPUTS = TestClipVision.INPUTS

    def make(self, **sizes: int) -> tuple[Any]:
        return (vision_output(**sizes),)


class TestAudioEncoderOutput(StandIn):
    RETURN_TYPES = ("AUDIO_ENCODER_OUTPUT",)
    INPUTS = ("layers", "width", "tokens")

    def make(self, layers: int, width: int, tokens: int) -> tuple[Any]:
        draw = torch.Generator().manual_seed(18)
        every = [torch.randn(1, tokens, width, generator=draw) for _ in range(layers)]
        output = {"encoded_audio_all_layers": every, "encoded_audio": every[-1]}
        return ({**output, "audio_samples": 640 * tokens // 2},)


NODES = (TestVAE, TestClipVision, TestClipVisionOutput, TestAudioEncoderOutput)
