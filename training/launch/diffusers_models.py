"""Diffusers pipelines as what the training sees: a denoiser, encoders of images and prompts, and the family's conventions."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DDPMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from PIL import Image
from torch import nn

from ...errors import TrainingError, UnsupportedModelError
from ...models.unet_names import lora_names, original_order
from ...samplers.schedule import TRAIN_TIMESTEPS, NoiseSchedule, sigma_of
from ..data.cache import Encoders
from ..data.examples import Conditioning
from ..denoiser import Denoiser, call_diffusers_transformer, call_diffusers_unet, half_dtype
from ..diffusion import Diffusion
from ..engine import LocalEngine
from ..job import Trainee
from ..lora_layers import EXCLUDED
from ..preview import as_images

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
OPTIONAL_PARTS = ("text_encoder_3", "tokenizer_3")
ENCODER_PARTS = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")
LEAST_ALPHA_BAR = 2**-24  # as diffusers has it: in place of the 0 of zero-terminal-SNR schedules, so that sigma stays finite


def _call_sdxl(
    network: nn.Module, x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning, scale_factor: int
) -> torch.Tensor:
    """Calls SDXL's UNet, which is told of an uncropped image of the latents' size, as samplers tell it."""
    height, width = (side * scale_factor for side in x.shape[-2:])
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], device=x.device, dtype=x.dtype).expand(len(x), -1)
    return call_diffusers_unet(network, x, time, conditioning | {"time_ids": time_ids})


def _prompts_sd15(pipeline: DiffusionPipeline, texts: list[str], device: torch.device) -> Conditioning:
    return {"context": pipeline.encode_prompt(texts, device, 1, False)[0]}


def _prompts_sdxl(pipeline: DiffusionPipeline, texts: list[str], device: torch.device) -> Conditioning:
    context, _, pooled, _ = pipeline.encode_prompt(texts, device=device, do_classifier_free_guidance=False)
    if pipeline.config.force_zeros_for_empty_prompt:  # SDXL stands zeros for the empty prompt
        empty = torch.tensor([text == "" for text in texts], device=context.device)
        context, pooled = (t.masked_fill(empty.view(-1, *[1] * (t.ndim - 1)), 0) for t in (context, pooled))
    return {"context": context, "pooled": pooled}


def _prompts_sd3(pipeline: DiffusionPipeline, texts: list[str], device: torch.device) -> Conditioning:
    context, _, pooled, _ = pipeline.encode_prompt(texts, None, None, device=device, do_classifier_free_guidance=False)
    return {"context": context, "pooled": pooled}


@dataclass(frozen=True)
class PipelineKind:
    """How training takes a kind of diffusers' pipelines.

    Args:
        family: a key of models.families.FAMILIES.
        network: the pipeline's name for the network that is trained.
        call: (network, x, time, conditioning) -> the network's prediction.
        prompts: (pipeline, texts, device) -> conditioning.
        excluded: patterns of the layers that are not adapted.
    """

    family: str
    network: str
    call: Callable[..., torch.Tensor]
    prompts: Callable[[DiffusionPipeline, list[str], torch.device], Conditioning]
    excluded: tuple[str, ...] = EXCLUDED


PIPELINES = {  # by the names of diffusers' classes
    "StableDiffusionPipeline": PipelineKind("sd15", "unet", call_diffusers_unet, _prompts_sd15),
    "StableDiffusionXLPipeline": PipelineKind("sdxl", "unet", _call_sdxl, _prompts_sdxl),
    # The released SD3 LoRAs adapt all 341 layers, the embeddings and the last one too.
    "StableDiffusion3Pipeline": PipelineKind("sd3", "transformer", call_diffusers_transformer, _prompts_sd3, ()),
}


class DiffusersModel:
    """A pipeline as training takes it; everything lies on the CPU until it is moved.

    Args:
        pipeline: of one of PIPELINES.
        is_embedded: whether it is the model that ships with the pack.
        diffusion: its noise schedule and kind of prediction; None takes those of the pipeline's scheduler.
    Raises: UnsupportedModelError for a noise schedule that is not one of these families'.
    """

    def __init__(self, pipeline: DiffusionPipeline, is_embedded: bool = False, diffusion: Diffusion | None = None):
        self.pipeline, self.kind = pipeline, PIPELINES[type(pipeline).__name__]
        self.network: nn.Module = getattr(pipeline, self.kind.network).eval().requires_grad_(False)
        self.is_embedded, self.is_unet = is_embedded, self.kind.network == "unet"
        self.scale_factor = pipeline.vae_scale_factor
        self.latent_channels = pipeline.vae.config.latent_channels
        self.denoiser = Denoiser(
            self.network, diffusion or diffusion_of(pipeline.scheduler), self._call(), half_dtype(self.network)
        )
        self.fingerprint = fingerprint(self._encoder_parts())

    @property
    def name(self) -> str:
        """The family that it belongs to, for people and for a LoRA's file."""
        return self.kind.family

    @property
    def resolution(self) -> int:
        """The side in pixels of the squares that the model draws."""
        size = self.network.config.sample_size
        return (size if isinstance(size, int) else max(size)) * self.scale_factor

    def _call(self) -> Callable[..., torch.Tensor]:
        call = partial(_call_sdxl, scale_factor=self.scale_factor) if self.kind.family == "sdxl" else self.kind.call

        def in_one_dtype(network: nn.Module, x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
            return call(network, x, time, {name: tensor.to(x.dtype) for name, tensor in conditioning.items()})

        return in_one_dtype

    def _encoder_parts(self) -> list[nn.Module]:
        parts = (getattr(self.pipeline, name, None) for name in ENCODER_PARTS)
        return [part.eval().requires_grad_(False) for part in parts if part is not None]

    def encoders_on(self, device: torch.device) -> Encoders:
        """Moves autoencoder and text encoders to `device`, and returns them as the cache takes them."""
        for part in self._encoder_parts():
            part.to(device)
        return Encoders(
            lambda pixels: encode_images(self.pipeline.vae, pixels.to(device)),
            lambda texts: self.kind.prompts(self.pipeline, texts, device),
            self.fingerprint,
        )

    def release_encoders(self, keep_autoencoder: bool = False) -> None:
        """Gives back the memory of the text encoders and the autoencoder, which may be kept on the CPU to decode pictures."""
        for name in ENCODER_PARTS:
            if name != "vae" or not keep_autoencoder:
                setattr(self.pipeline, name, None)
            else:
                self.pipeline.vae.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def trainee(self, engine: LocalEngine, precision: str) -> Trainee:
        """Returns the network as a training of phases takes it.

        Its layers are in the original layout's order, so that they start with the values that ComfyUI's training gives them.

        Args:
            engine: what runs a step.
            precision: of the arithmetic, as TrainingConfig.precision.
        """
        return Trainee(
            denoiser=self.denoiser,
            engine=engine,
            family=self.kind.family,
            is_embedded=self.is_embedded,
            precision=precision,
            lora_name=lora_names(self.network),
            layer_order=original_order(self.network) if self.is_unet else None,
        )

    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Returns the pictures of latents [count, ...] as the network sees them, decoded on their device one by one."""
        pixels = torch.cat([self.pixels(one) for one in latents.split(1)])
        self.pipeline.vae.to("cpu")
        return as_images(pixels.permute(0, 2, 3, 1))

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns pictures [batch, 3, height, width] of about 0 to 1, with a gradient; the autoencoder stays where they are.

        Args:
            latents: [batch, ...] as the network sees them.
        """
        vae = self.pipeline.vae.to(latents.device)
        unscaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        return vae.decode(unscaled.to(vae.dtype)).sample.add(1).div(2)


def encode_images(vae: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Returns the latents of `pixels` [batch, 3, height, width] as the network sees them, each the likeliest one."""
    latents = vae.encode(pixels).latent_dist.mode()
    return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def diffusion_of(scheduler: SchedulerMixin) -> Diffusion:
    """Returns the diffusion process that a pipeline's scheduler stands for.

    Raises: UnsupportedModelError for other than 1000 timesteps, and for noise levels that are neither betas nor a fixed flow.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if config.num_train_timesteps != TRAIN_TIMESTEPS:
        raise UnsupportedModelError(
            f"{name} has {config.num_train_timesteps} timesteps; only models of {TRAIN_TIMESTEPS} are trained."
        )
    if "FlowMatch" in name:
        if config.get("use_dynamic_shifting"):
            raise UnsupportedModelError(f"{name} shifts its times with the image's size; use a model with a fixed shift.")
        sigmas = FlowMatchEulerDiscreteScheduler(shift=config.get("shift", 1.0)).sigmas[:TRAIN_TIMESTEPS]
        return Diffusion.from_schedule(NoiseSchedule.from_sigmas(sigmas.double().flip(0)))
    if "beta_start" not in config and config.get("trained_betas") is None:
        raise UnsupportedModelError(
            f"{name} has no betas, so its noise levels are not known; use a model with a DDPM schedule."
        )
    decisive = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    betas = DDPMScheduler(**{key: config[key] for key in decisive if key in config}).betas.double()
    alpha_bar = (1 - betas).cumprod(0).clamp(min=LEAST_ALPHA_BAR)
    return Diffusion.from_schedule(NoiseSchedule.from_sigmas(sigma_of(alpha_bar)), config.get("prediction_type", "epsilon"))


def fingerprint(parts: Iterable[nn.Module], samples: int = 16) -> str:
    """Returns a name for the weights of `parts`, a hash.

    Args:
        parts: networks, of which every tensor's name, type, shape and some values count.
        samples: how many values of a tensor count, about.
    """
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = tensor.detach().flatten()[:: max(1, tensor.numel() // samples)].double()
            digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def load_model(source: str, dtype: str, local: bool) -> DiffusersModel:
    """Loads a pipeline on the CPU, its autoencoder in float32, which some autoencoders need.

    Args:
        source: a folder, or a hub id when not `local`.
        dtype: of network and text encoders, one of DTYPES.
        local: whether nothing may be downloaded.
    Raises: TrainingError when it cannot be read; UnsupportedModelError for other families.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        if local and not Path(source, "model_index.json").is_file():
            raise OSError("it holds no model_index.json")
        index = DiffusionPipeline.load_config(source, local_files_only=local)
        name = index["_class_name"]
        if name not in PIPELINES:
            raise UnsupportedModelError(f"{source} is a {name}; what can be trained are {', '.join(PIPELINES)}.")
        kind = getattr(diffusers, name)
        dtypes = {"vae": torch.float32, "default": DTYPES[dtype]}
        pipeline = kind.from_pretrained(
            source, local_files_only=local, use_safetensors=True, **_left_out(kind, index), **{_DTYPE: dtypes}
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        place = "a diffusers folder, with model_index.json and .safetensors weights" if local else "a hub id such as owner/name"
        raise TrainingError(f"The model {source} cannot be loaded ({reason}); give {place}.") from error
    return DiffusersModel(pipeline)


_NEW_NAME = tuple(int(part) for part in diffusers.__version__.split(".")[:2]) >= (0, 42)
_DTYPE = "dtype" if _NEW_NAME else "torch_dtype"  # both work from 0.42 on, the old name with a warning


def _left_out(kind: type[DiffusionPipeline], index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments that leave out the parts that training does not use, and those that a folder lacks (SD3 without T5)."""
    accepted = inspect.signature(kind.__init__).parameters
    absent = {name: None for name in UNUSED_PARTS if name in accepted}
    absent |= {name: None for name in OPTIONAL_PARTS if name in accepted and not any(index.get(name) or ())}
    return absent | ({"requires_safety_checker": False} if "requires_safety_checker" in accepted else {})
