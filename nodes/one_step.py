"""The one-step SDXL UNet: its loader, and the start and the noise level it was distilled for."""

from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import safetensors
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..errors import HyperSDError, UnsupportedModelError
from ..models.host_folders import HOST_ENDINGS
from ..models.tensor_file import open_tensors
from ..models.unet_file import CLIP, PREFIX, VAE, UnetInfo, inspect_unet, stream_tensors
from ..samplers.schedule import NoiseSchedule
from ..samplers.tcd import sample_tcd
from ..samplers.timesteps import LAST_TIMESTEP, ONE_STEP_START, hyper_sd_sigmas
from .schema import CATEGORY, found_as, require_choice, require_start
from .unit_noise import UnitNoiseSampler

FOLDERS = ("diffusion_models", "checkpoints")
NONE = "none found"
AUTO = "auto"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8_e4m3fn": torch.float8_e4m3fn}


def file_options() -> list[str]:
    """Returns "folder/name" of every safetensors file that may hold a UNet, one-step UNets first."""
    listed = [f"{folder}/{name}" for folder in FOLDERS for name in folder_paths.get_filename_list(folder)]
    usable = [option for option in listed if option.lower().endswith(HOST_ENDINGS["comfyui"])]
    return sorted(usable, key=lambda option: not all(part in option.lower() for part in ("1step", "unet"))) or [NONE]


def file_path(option: str) -> Path:
    """Returns the file of one of file_options.

    Raises: UnsupportedModelError when there is none, or it is gone.
    """
    folder, _, name = option.partition("/")
    path = folder_paths.get_full_path(folder, name) if folder in FOLDERS else None
    if path is None:
        reason = "There is no model file" if option == NONE else f"{option} is no longer there"
        raise UnsupportedModelError(
            f"{reason}. Open the sidebar tab Hyper-SD models and get the SDXL one-step UNet, or run `python install.py "
            "download hyper-sdxl-1step-unet`; then refresh the page (R) and choose it."
        )
    return Path(path)


def host_state(info: UnetInfo, whole: bool = False) -> dict[str, torch.Tensor]:
    """Returns a file as the host tells models apart: the UNet's names and shapes without memory, the other tensors mapped.

    Args:
        info: of the file.
        whole: with CLIP and VAE. While the result lives, so do the pages of them that were read.
    """
    state = {f"{PREFIX}{t.key}": torch.empty(t.shape, dtype=t.dtype, device="meta") for t in info.tensors}
    names = [name for name in info.others if whole or not name.startswith((CLIP, VAE))]
    if names:
        # Mapped, as these are not ours to cast; the file has to be the one that was looked at, before and after.
        with open_tensors(info.path, info.stamp), safetensors.safe_open(info.path, framework="pt") as file:
            state.update((name, file.get_tensor(name)) for name in names)
    return state


def load_unet(info: UnetInfo, dtype: torch.dtype | None, config: Any, state: dict[str, torch.Tensor]) -> Any:
    """Returns the MODEL: the host's network, built without memory, takes the tensors as they are read.

    So each weight exists once, in its final dtype, and nothing else of the file is held.

    Args:
        info: of the file.
        dtype: of the weights, None for the host's choice.
        config: the host's configuration for this UNet.
        state: what host_state returns.
    """
    management = comfy.model_management
    device, offload = management.get_torch_device(), management.unet_offload_device()
    usual = config.supported_inference_dtypes
    dtype = dtype or management.unet_dtype(model_params=info.parameters, supported_dtypes=usual, weight_dtype=info.dtype)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, usual))
    model = config.get_model(state, PREFIX, device=torch.device("meta"))
    progress, weights = comfy.utils.ProgressBar(len(info.tensors)), {}
    for key, tensor in stream_tensors(info, dtype):
        weights[key] = tensor.to(offload)
        comfy.model_management.throw_exception_if_processing_interrupted()  # the progress bar asks this now and then only
        progress.update(1)
    model.diffusion_model.load_state_dict(weights, assign=True)
    model.device = offload
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)
    patcher.cached_patcher_init = (_load_unet_anew, (info, dtype, config))  # the own training of ComfyUI 0.33 asks for it
    return patcher


def _load_unet_anew(info: UnetInfo, dtype: torch.dtype, config: Any, disable_dynamic: bool = True) -> Any:
    return load_unet(info, dtype, config, host_state(info))


def load_text_and_vae(info: UnetInfo) -> tuple[Any, Any]:
    """Returns CLIP and VAE through the host's own loader; in place of one that the file lacks, what stops its users."""
    clip = vae = None
    if info.has_clip or info.has_vae:
        _, clip, vae, _ = comfy.sd.load_state_dict_guess_config(
            host_state(info, whole=True),
            output_model=False,
            output_clip=info.has_clip,
            output_vae=info.has_vae,
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
        )
    return clip or _absent(info, "CLIP", "DualCLIPLoader (type sdxl)"), vae or _absent(info, "VAE", "VAELoader")


def _absent(info: UnetInfo, what: str, node: str) -> ExecutionBlocker:
    return ExecutionBlocker(f"{info.path.name} holds a UNet and no {what}; take the {what} from {node} or an SDXL checkpoint.")


def one_step_sigmas(model: Any, start_timestep: int) -> torch.Tensor:
    """Returns [sigma(start_timestep), 0] from the MODEL's own noise levels, patches included."""
    schedule = NoiseSchedule.from_sigmas(model.get_model_object("model_sampling").sigmas.double().cpu())
    return hyper_sd_sigmas(schedule, 1, start_timestep=start_timestep)


OUTPUTS = [
    io.Model.Output(),
    io.Clip.Output(tooltip="Of a full checkpoint. A file with only a UNet has none: nodes wired here then say so."),
    io.Vae.Output(tooltip="Of a full checkpoint. A file with only a UNet has none: nodes wired here then say so."),
    io.Sampler.Output(tooltip="For SamplerCustom: one step with the exact start."),
    io.Sigmas.Output(tooltip="For SamplerCustom: the start timestep's noise level, then 0."),
    io.Float.Output("cfg", display_name="cfg", tooltip="1.0, for the cfg of SamplerCustom; the negative prompt is left out."),
]


class HyperSDOneStepLoader(io.ComfyNode):
    """The one-step SDXL UNet as MODEL, CLIP and VAE where the file has them, and SAMPLER, SIGMAS and CFG to go with it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDOneStepLoader",
            display_name="Hyper-SD One-Step Loader",
            category=CATEGORY,
            **found_as("SDXL UNet", "one step", "1step", "single step", "load diffusion model"),
            description="Loads the one-step SDXL UNet, in either released form, with everything its one step needs.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=file_options(),
                    tooltip="An SDXL UNet or full SDXL checkpoint (.safetensors), with the folder it lies in. One-step UNets "
                    "come first. A plain SDXL model works too, with the unified LoRA after it and start_timestep 999.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=[AUTO, *DTYPES],
                    default=AUTO,
                    tooltip="How the UNet's weights are kept. auto: what suits this machine. In memory: fp32 10.3 GB, fp16 and "
                    "bf16 5.1 GB, fp8 2.6 GB with a little less detail. Change it when memory is short.",
                ),
                io.Int.Input(
                    "start_timestep",
                    default=ONE_STEP_START,
                    min=1,
                    max=LAST_TIMESTEP,
                    tooltip="Timestep of the one step, 1 to 999. 800 for the one-step UNet, which was made for it; 999 for the "
                    "unified LoRA on a plain SDXL model.",
                ),
            ],
            outputs=OUTPUTS,
        )

    @classmethod
    def validate_inputs(cls, file=None) -> bool | str:
        """Reads the file's head before the run, so that a wrong file stops its own part of the graph only."""
        try:
            if file is not None:  # wired from another node, it is known only later
                inspect_unet(file_path(file))
        except (HyperSDError, OSError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file=None, **inputs) -> str:
        """Changes when the chosen file does."""
        status = file_path(file).stat()
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, file: str, dtype: str = AUTO, start_timestep: int = ONE_STEP_START) -> io.NodeOutput:
        require_choice("dtype", dtype, [AUTO, *DTYPES])
        require_start(start_timestep)
        info = inspect_unet(file_path(file))
        clip, vae = load_text_and_vae(info)  # first, while the UNet takes no memory yet
        state = host_state(info)
        config = comfy.model_detection.model_config_from_unet(state, PREFIX)
        model = load_unet(info, DTYPES.get(dtype), config, state)
        sampler = UnitNoiseSampler(sample_tcd, extra_options={"eta": 0.0})
        return io.NodeOutput(model, clip, vae, sampler, one_step_sigmas(model, start_timestep), 1.0)


NODES = [HyperSDOneStepLoader]
