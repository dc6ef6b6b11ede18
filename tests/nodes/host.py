"""The host's own nodes as plain functions, and small host models with seeded weights. Imported by the `host` fixture only."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from comfy_extras.nodes_train import TrainLoraNode
from hyper_sd.nodes.extension import HyperSDExtension

import nodes

# By these, hosts from 0.9.1 on leave out progress that follows the last one closely.
THROTTLES = {name: value for name, value in vars(comfy.utils).items() if name.startswith("PROGRESS_THROTTLE_MIN_")}
CONTEXT = 768
SIZE = 16
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [1] * 6,
    "transformer_depth_middle": 1,
    "context_dim": CONTEXT,
    "num_heads": 4,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "dtype": torch.float32,
}
OUTPUTS = {"out_channels": 4, "transformer_depth_output": [1] * 9}  # of the UNet alone, which a ControlNet has not
MMDIT = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": CONTEXT,
    "num_patches": 576,
    "pos_embed_max_size": 24,
    "pos_embed_scaling_factor": None,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": 128}},
    "dtype": torch.float32,
}


def load_pack() -> list[str]:
    """Loads the pack's extension as the host does and returns its node ids."""
    return [node.GET_SCHEMA().node_id for node in asyncio.run(HyperSDExtension().get_node_list())]


def demo_checkpoint() -> Path:
    """Returns where the embedded model's weights lie."""
    from hyper_sd.models.embedded import CHECKPOINT

    return CHECKPOINT


def fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Gives parameters and position tables seeded values that keep activations near unit size; the host leaves them empty."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        values = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensor.data = values / (tensor.numel() / tensor.shape[0]) ** 0.5
        else:
            tensor.data = 0.1 * values + name.endswith("weight")
    return module


def _patcher(make: Callable[[], comfy.model_base.BaseModel]) -> comfy.model_patcher.ModelPatcher:
    model = make()
    fill(model.diffusion_model, seed=7)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    patcher.cached_patcher_init = (lambda **_: _patcher(make), ())  # by which the own training of ComfyUI 0.33 takes a copy
    return patcher


def small_unet(kind: str = "EPS", channels: int = 4) -> comfy.model_patcher.ModelPatcher:
    """Returns a small MODEL of SD1.5's attention layers; kind is a host ModelType's name, channels is 9 for inpainting."""
    config = comfy.supported_models.SD15({**UNET, **OUTPUTS, "in_channels": channels})
    config.unet_config.update(num_heads=4, num_head_channels=-1)
    return _patcher(lambda: comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType[kind]))


def small_mmdit() -> comfy.model_patcher.ModelPatcher:
    """Returns a small SD3-type MODEL: the host's MMDiT and its flow sampling with shift 3."""
    return _patcher(lambda: comfy.model_base.SD3(comfy.supported_models.SD3(dict(MMDIT))))


def small_controlnet() -> comfy.controlnet.ControlNet:
    """Returns a CONTROL_NET for small_unet."""
    net = comfy.cldm.cldm.ControlNet(hint_channels=3, operations=comfy.ops.disable_weight_init, **UNET)
    return comfy.controlnet.ControlNet(fill(net, seed=9), load_device=torch.device("cpu"))


def conditioning(seed: int) -> list:
    """Returns a CONDITIONING of random text states."""
    generator = torch.Generator().manual_seed(seed)
    states, pooled = torch.randn(1, 77, CONTEXT, generator=generator), torch.randn(1, CONTEXT, generator=generator)
    return [[states, {"pooled_output": pooled}]]


def latent(batch: int = 1, channels: int = 4, seed: int | None = None, size: int = SIZE) -> dict:
    """Returns a LATENT: empty, or random when a seed is given."""
    shape = (batch, channels, size, size)
    samples = torch.zeros(shape) if seed is None else torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return {"samples": samples}


def ksampler(
    model,
    positive,
    negative,
    *,
    seed=5,
    steps=4,
    cfg=1.0,
    image=None,
    denoise=1.0,
    sampler="hyper_sd_tcd",
    scheduler="hyper_sd",
) -> torch.Tensor:
    """Runs the host's KSampler node."""
    image = latent() if image is None else image
    node = nodes.KSampler()
    return node.sample(model, seed, steps, cfg, sampler, scheduler, positive, negative, image, denoise)[0]["samples"]


def _preset(declared: tuple) -> Any:
    """Returns the value that an input's declaration sets out with, None for one that has to be wired."""
    kind, options = declared[0], declared[1] if len(declared) > 1 else {}
    offered = kind if isinstance(kind, list) else options.get("options", [None])
    return options.get("default", offered[0])


def run_node(node: type, **given) -> tuple:
    """Runs a node of the host and returns its outputs.

    Both of the host's ways to write a node are known, since with every version more nodes change sides. So do their inputs:
    those that are not given have their presets, and what this host's node does not take is left out.

    Args:
        node: the class.
        given: inputs by name; for a node that takes lists, a list is given as it is and all else as a list of one.
    """
    declared = node.INPUT_TYPES()
    inputs = declared["required"] | declared.get("optional", {})
    values = {name: given[name] if name in given else _preset(how) for name, how in inputs.items()}
    if getattr(node, "INPUT_IS_LIST", False):
        values = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    if issubclass(node, io.ComfyNode):
        return node.execute(**values).args
    return getattr(node(), node.FUNCTION)(**values)


def own_training(model, groups: list[dict], positive: list, steps: int) -> dict[str, Any]:
    """Runs the host's own training and returns what it gives, by type.

    Args:
        model: the MODEL.
        groups: the LATENTs, one of each size. A host whose node takes one at a time gets the last.
        positive: a CONDITIONING for each of them.
        steps: how many.
    """
    given = {"model": model, "steps": steps, "rank": 2, "training_dtype": "fp32", "lora_dtype": "fp32"}
    if not getattr(TrainLoraNode, "INPUT_IS_LIST", False):
        groups, positive = groups[-1], positive[-1]
    made = run_node(TrainLoraNode, latents=groups, positive=positive, gradient_checkpointing=False, **given)
    return dict(zip(TrainLoraNode.RETURN_TYPES, made, strict=True))


def custom(model, positive, negative, sampler, sigmas, *, seed=5, cfg=1.0, image=None) -> torch.Tensor:
    """Runs the host's SamplerCustom node."""
    image = latent() if image is None else image
    conds = {"positive": positive, "negative": negative}
    chosen = {"sampler": sampler, "sigmas": sigmas, "latent_image": image}
    return run_node(SamplerCustom, model=model, add_noise=True, noise_seed=seed, cfg=cfg, **conds, **chosen)[0]["samples"]


def initial_noise(image: dict, seed: int = 5) -> torch.Tensor:
    """Returns the noise the host starts from."""
    return comfy.sample.prepare_noise(image["samples"], seed)


def with_sampling(model, sampling: str, zero_terminal_snr: bool = False):
    """Returns the MODEL behind the host's ModelSamplingDiscrete node."""
    return run_node(ModelSamplingDiscrete, model=model, sampling=sampling, zsnr=zero_terminal_snr)[0]


def network_of(model) -> torch.nn.Module:
    """Returns the bare network with this MODEL's weights; those of another MODEL of it may have been left on it."""
    comfy.model_management.load_model_gpu(model)
    return model.model.diffusion_model


@contextmanager
def sampling_patched(model) -> Iterator[None]:
    """Gives the bare network the MODEL's own model_sampling, as a sampling run does."""
    original, model.model.model_sampling = model.model.model_sampling, model.get_model_object("model_sampling")
    try:
        yield
    finally:
        model.model.model_sampling = original


def watched(model) -> tuple:
    """Returns a clone whose network calls are recorded, and the list of them: batch, cond_or_uncond, sigma."""
    calls, clone = [], model.clone()

    def wrapper(apply_model, arguments):
        x, sigma, kinds = arguments["input"], arguments["timestep"], arguments["cond_or_uncond"]
        calls.append(SimpleNamespace(batch=len(x), kinds=list(kinds), sigma=sigma[0].item(), x=x.clone()))
        return apply_model(x, sigma, **arguments["c"])

    clone.set_model_unet_function_wrapper(wrapper)
    return clone, calls


def on_progress(hook) -> None:
    """Sets the host's progress hook, hook(value, total), to be called at every step; None clears it."""
    for name, value in THROTTLES.items():
        setattr(comfy.utils, name, value if hook is None else 0)
    wrapped = None if hook is None else lambda value, total, *_, **__: hook(value, total)
    comfy.utils.set_progress_bar_global_hook(wrapped)
