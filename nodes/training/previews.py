"""A training's latents as pictures in this host: by a VAE, or as the host previews what it samples."""

import latent_preview
import numpy as np
import torch
from PIL import Image

from ...training.preview import as_images
from .network import HostNetwork, stopping


def decoder(host: HostNetwork, vae):
    """Returns the function from latents [count, ...] as the network sees them to images; None for the VAE gives previews."""

    def decode(latents: torch.Tensor) -> list[Image.Image]:
        if vae is None:
            return _without_vae(host, latents)
        with stopping():
            return as_images(vae.decode(host.model.process_latent_out(latents)))

    return decode


def _without_vae(host: HostNetwork, latents: torch.Tensor) -> list[Image.Image]:
    """Returns the previews that the host shows while it samples, also where they are turned off."""
    known = host.model.latent_format
    previewer = latent_preview.get_previewer(host.device, known)
    if previewer is None:
        bias = getattr(known, "latent_rgb_factors_bias", None)
        previewer = latent_preview.Latent2RGBPreviewer(known.latent_rgb_factors, bias)
    return [previewer.decode_latent_to_preview_image("JPEG", row[None])[1] for row in latents]


def as_image(sheet: Image.Image | None) -> torch.Tensor:
    """Returns a sheet as the host's IMAGE [1, height, width, 3] in 0..1; a small white one for none."""
    sheet = sheet or Image.new("RGB", (64, 64), "white")
    return torch.from_numpy(np.asarray(sheet.convert("RGB"), dtype=np.float32) / 255)[None]
