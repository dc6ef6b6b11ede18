"""The network inside a MODEL as the training core takes it: loaded whole, trained, and afterwards as it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.ldm.modules.attention
import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import comfy.supported_models
import comfy.utils
import torch
from torch import nn

from ...errors import TrainingError, UnsupportedModelError
from ...models.families import FAMILIES
from ...samplers.schedule import NoiseSchedule
from ...training.data.examples import Conditioning, GroupedExamples, grouped_examples
from ...training.denoiser import Denoiser
from ...training.diffusion import Diffusion
from ...training.engine import PRECISION_DTYPES, LocalEngine
from ...training.job import Trainee
from ...training.request import fingerprint
from .. import demo_model
from ..lora_files import family_of
from .weights import leave_inference_mode, require_trainable, whole_clone

CONDITIONS = {"c_crossattn": "context", "y": "y"}  # the host's names -> the network's


class Stopped(KeyboardInterrupt):
    """The host's interrupt as the training loop takes it: like Ctrl-C, which it answers with a checkpoint."""


@contextmanager
def stopping() -> Iterator[None]:
    """Turns the interrupt that the host's layers raise in the middle of a step into Stopped."""
    try:
        yield
    except comfy.model_management.InterruptProcessingException as error:
        raise Stopped from error


class HostEngine(LocalEngine):
    """One process on the host's device; a backward pass that recomputes blocks can be interrupted, too."""

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of `loss`."""
        with stopping():
            super().backward(loss)


@dataclass(frozen=True)
class HostNetwork:
    """A MODEL's network for training: its own, or under the host's dynamic VRAM a copy of it.

    Args:
        patcher: a clone of the MODEL.
        is_copy: whether it has weights of its own.
        family: "sd15" or "sdxl".
        diffusion: its noise schedule and kind of prediction.
        precision: of the arithmetic, as TrainingConfig.precision.
        dtype: of the tensors that the network is given.
    """

    patcher: Any
    is_copy: bool
    family: str
    diffusion: Diffusion
    precision: str
    dtype: torch.dtype

    @property
    def model(self) -> Any:
        """The host's object around the network."""
        return self.patcher.model

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return self.model.diffusion_model

    @property
    def device(self) -> torch.device:
        """Where the host computes with it."""
        return self.patcher.load_device

    @property
    def denoiser(self) -> Denoiser:
        """The network with its noise schedule and the way it is called."""
        return Denoiser(self.network, self.diffusion, self._call, self.half_dtype)

    @property
    def half_dtype(self) -> torch.dtype | None:
        """The precision's dtype where the host computes in it by itself, with weights that have it or that it casts."""
        return self.dtype if self.dtype == PRECISION_DTYPES[self.precision] == _computed(self.model) else None

    def engine(self) -> HostEngine:
        """Returns what runs a step."""
        return HostEngine(self.device, self.precision)

    def trainee(self) -> Trainee:
        """Returns the network as the training core takes it."""
        return Trainee(self.denoiser, self.engine(), self.family, self.is_embedded, self.precision, self.lora_name())

    @property
    def is_embedded(self) -> bool:
        """Whether it is the model that ships with the pack."""
        return demo_model.is_embedded(self.patcher)

    def free_bytes(self, needed: float) -> float:
        """Returns the bytes that are free after other models have made room for `needed` bytes."""
        self.load(needed)
        return comfy.model_management.get_free_memory(self.device)

    def load(self, memory: float = 0) -> None:
        """Brings the whole network to its device, with the MODEL's patches.

        Args:
            memory: bytes to be left free for the training.
        Raises: UnsupportedModelError when the host keeps a part of the weights elsewhere.
        """
        with torch.inference_mode(False), torch.no_grad():
            comfy.model_management.load_models_gpu([self.patcher], memory_required=memory, force_full_load=True)
            leave_inference_mode(self.network)
        away = next((p.device for p in self.network.parameters() if p.device.type != self.device.type), None)
        if away is not None:
            raise UnsupportedModelError(
                f"Training needs the whole model on {self.device}, but the host keeps a part of it on {away}; start it without "
                "--novram, close other programs that use the memory, or take a smaller model."
            )

    def latents(self, samples: torch.Tensor) -> torch.Tensor:
        """Returns a LATENT's samples [count, 4, height, width] as the network sees them, float32 on the CPU.

        Raises: TrainingError for latents of another kind of model.
        """
        channels = FAMILIES[self.family].latent_channels
        if samples.ndim != 4 or samples.shape[1] != channels:
            raise TrainingError(
                f"latents must be [count, {channels}, height, width] for this model, got {list(samples.shape)}; "
                "make them with the VAE that belongs to it."
            )
        return self.model.process_latent_in(samples.detach().to("cpu", torch.float32, copy=True))

    def conditioning(self, entry: list, latents: torch.Tensor, kind: str) -> Conditioning:
        """Returns what the host itself would give the network for one entry of a CONDITIONING, float32 on the CPU.

        Args:
            entry: of the CONDITIONING.
            latents: [1, channels, height, width]; SDXL is told their size.
            kind: "positive" or "negative".
        Raises: TrainingError for an entry of another kind of model, or with a ControlNet.
        """
        width, pooled = self.model.model_config.unet_config.get("context_dim"), entry[1].get("pooled_output")
        if entry[1].get("control") is not None:
            raise TrainingError(f"{kind} goes through a ControlNet; training takes the conditioning before it.")
        if entry[0].shape[-1] != width or (self.model.adm_channels and pooled is None):
            raise TrainingError(
                f"{kind} was made by the CLIP of another model: it has {entry[0].shape[-1]} values a token "
                f"{'and no pooled output' if pooled is None else 'and a pooled output'}, this model takes {width}"
                f"{' and a pooled output' if self.model.adm_channels else ''}; wire the CLIP that belongs to it."
            )
        converted = comfy.sampler_helpers.convert_cond([entry])
        encoded = comfy.samplers.encode_model_conds(self.model.extra_conds, converted, latents, self.device, kind)
        conditions = encoded[0]["model_conds"]
        unknown = conditions.keys() - CONDITIONS.keys()
        if unknown:
            raise TrainingError(
                f"{kind} carries {', '.join(sorted(unknown))}, which training has no use for; wire a plain prompt."
            )
        return {CONDITIONS[name]: c.cond.detach().to("cpu", torch.float32, copy=True) for name, c in conditions.items()}

    def examples(
        self, latents: Sequence[dict[str, Any]], positive: Sequence[list], negative: Sequence[list]
    ) -> GroupedExamples:
        """Returns LATENTs and CONDITIONINGs as examples; the arguments are those of grouped_examples()."""
        return grouped_examples(latents, positive, negative, as_latents=self.latents, as_conditioning=self.conditioning)

    def lora_name(self) -> Callable[[str], str]:
        """Returns a function from a module of the network to its name in a LoRA file: diffusers' for SD1.5, else its own."""
        if self.family != "sd15":
            return str
        listed = comfy.utils.unet_to_diffusers(self.model.model_config.unet_config).items()
        return {own.removesuffix(".weight"): name.removesuffix(".weight") for name, own in listed}.__getitem__

    def host_names(self) -> dict[str, str]:
        """Returns the network's names of its modules by those that the host knows in LoRA files."""
        listed = comfy.lora.model_lora_keys_unet(self.model, {}).items()
        paths = ((name, target if isinstance(target, str) else target[0]) for name, target in listed)
        return {name: path.removeprefix("diffusion_model.").removesuffix(".weight") for name, path in paths}

    def fingerprint(self) -> str:
        """Returns a hash over the weights, the MODEL's patches included, and what it predicts."""
        schedule = {self.diffusion.prediction_type: self.diffusion.sigma}
        return fingerprint({**schedule, **self.network.state_dict()})

    def _call(self, network: nn.Module, x: torch.Tensor, time: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        conditions = {name: tensor.to(self.dtype) for name, tensor in conditioning.items()}
        with stopping():
            options = {"optimized_attention_override": _differentiable_attention}
            return network(x.to(self.dtype), time.float(), transformer_options=options, **conditions)


def host_network(model: Any) -> HostNetwork:
    """Returns the network of a MODEL for training; nothing is on its device yet.

    Raises: UnsupportedModelError for another family, another input, another kind of noise schedule, or quantised weights.
    """
    inner = model.model
    family = _architecture(inner.model_config)
    if family is None:
        raise UnsupportedModelError(
            f"Training is made for SD1.5 and SDXL, got a model of family {family_of(model)}; load an SD1.5 or SDXL checkpoint."
        )
    usual = FAMILIES[family].latent_channels
    channels = inner.model_config.unet_config.get("in_channels", usual)  # 9 is inpainting, 8 an edit model
    if channels != usual or inner.concat_keys:
        raise UnsupportedModelError(
            f"Training takes models with {usual} latent channels in, got {channels}: an inpainting or edit model; load the "
            "plain checkpoint it was made from."
        )
    sampling = model.get_model_object("model_sampling")
    schedule = NoiseSchedule.from_sigmas(sampling.sigmas.detach().double().cpu())
    diffusion = Diffusion.from_schedule(schedule, _prediction_type(sampling))
    require_trainable(inner.diffusion_model)
    precision = _precision(model.load_device, _computed(inner))
    dtype = PRECISION_DTYPES[precision] or _computed(inner)
    patcher = whole_clone(model)
    return HostNetwork(patcher, patcher.model is not inner, family, diffusion, precision, dtype)


@contextmanager
def network_of(model: Any) -> Iterator[HostNetwork]:
    """Lends the network of a MODEL as host_network(); a copy leaves the device afterwards, also after an error."""
    found = host_network(model)
    try:
        yield found
    finally:
        if found.is_copy:
            found.patcher.detach()


def _architecture(config: Any) -> str | None:
    """Returns the family that is trained as a network is, its relatives with other numbers of layers among them."""
    trainable = ((key, family.comfyui_class) for key, family in FAMILIES.items() if family.is_trainable)
    return next((key for key, name in trainable if isinstance(config, getattr(comfy.supported_models, name))), None)


def _computed(model: Any) -> torch.dtype:
    """Returns the dtype that the host computes in with the model."""
    return getattr(model, "manual_cast_dtype", None) or model.get_dtype()


def _precision(device: torch.device, computed: torch.dtype) -> str:
    """Returns the precision of a training: on a card the host's own where that is a half one.

    Args:
        device: that the host computes on.
        computed: dtype that it computes in.
    """
    if comfy.model_management.is_device_cpu(device):
        return "fp32"
    own = next((name for name, dtype in PRECISION_DTYPES.items() if dtype == computed), None)
    return own or ("bf16" if comfy.model_management.should_use_bf16(device) else "fp16")


def _prediction_type(sampling: Any) -> str:
    """Returns the core's name of what a model_sampling object takes the network's output for."""
    known = comfy.model_sampling
    kinds = {known.EPS: "epsilon", known.V_PREDICTION: "v_prediction", known.X0: "sample"}
    own = type(sampling)
    predicted = next((name for kind, name in kinds.items() if own.calculate_denoised is kind.calculate_denoised), None)
    discrete = isinstance(sampling, known.ModelSamplingDiscrete) and own.timestep is known.ModelSamplingDiscrete.timestep
    if predicted is None or own.calculate_input is not known.EPS.calculate_input or not discrete:
        raise UnsupportedModelError(
            f"Training takes models with a discrete noise schedule that predict noise, velocity or the image; this one samples "
            f"as {', '.join(base.__name__ for base in own.__bases__)}. Take off the node that patches its sampling."
        )
    return predicted


def _differentiable_attention(chosen: Callable, *args, **kwargs) -> torch.Tensor:
    """Takes torch's attention: the one that the host chooses when memory is short cannot be trained through."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
