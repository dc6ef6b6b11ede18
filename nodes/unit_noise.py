"""A SAMPLER that starts from exact unit noise below the highest noise level, too."""

import comfy.samplers
import torch

from ..errors import ScheduleError


class _FullNoise(comfy.samplers.KSAMPLER):
    """Starts every run as the host starts one from its highest noise level: noise * sqrt(1 + sigma^2)."""

    def max_denoise(self, model_wrap, sigmas) -> bool:
        return True


class UnitNoiseSampler(comfy.samplers.KSAMPLER):
    """A SAMPLER that starts an empty latent from noise of deviation 1 in the model's own scale, at whatever timestep.

    The host does so from the highest sigma only; below it, it starts from sigma * noise, which at t = 800 is 1.9 % too low. An
    image starts as it always does, from image + sigma * noise, which is exactly the diffusion of that image.
    Source: diffusers, StableDiffusionXLPipeline.prepare_latents with TCDScheduler (init_noise_sigma = 1).
    """

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        """Samples from noise and an image, both latents [batch, ...], along sigmas [steps + 1].

        Raises: ScheduleError for a mask with a timestep_shift: the host would add noise of the shifted level around the mask.
        """
        shift = self.extra_options.get("timestep_shift", 1)
        if denoise_mask is not None and shift != 1:
            raise ScheduleError(
                f"A sampler with timestep_shift {shift:g} cannot follow an inpainting mask. Choose the method in the node "
                "Hyper-SD, which shifts the MODEL itself, and leave timestep_shift at 1."
            )
        arguments = (model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        if latent_image is None or torch.count_nonzero(latent_image) > 0:
            return super().sample(*arguments)
        return _FullNoise(self.sampler_function, self.extra_options, self.inpaint_options).sample(*arguments)
