"""The embedded model: a small emoji painter that ships with the pack, built from the host's own SD1.5 classes."""

import json
from pathlib import Path
from typing import Any

import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import torch
from comfy_api.latest import io

from ..errors import UnsupportedModelError
from ..models import embedded
from .schema import CATEGORY, found_as, require_choice

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
BASE = "none"
ATTACHMENT = "hyper_sd_demo_model"  # marks a MODEL as the embedded one, which has LoRAs of its own


def is_embedded(model: Any) -> bool:
    """Whether a MODEL is the one that ships with the pack."""
    return model.get_attachment(ATTACHMENT) is not None


def read_config() -> dict:
    """Returns the sizes of the networks: keys "unet", "vae", "text"."""
    return json.loads(embedded.CONFIG.read_text(encoding="utf-8"))


class DemoTextEncoder(comfy.sd1_clip.SDClipModel):
    """The host's CLIP text model with the demo's sizes and its 4096-token vocabulary."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        config = read_config()["text"]
        end = config["eos_token_id"]
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=dict(config),
            special_tokens={"start": config["bos_token_id"], "end": end, "pad": end},
            return_projected_pooled=False,
            model_options=model_options or {},
        )
        embedding = self.operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
        self.transformer.set_input_embeddings(embedding)  # the host's class builds CLIP's full 49408
        # The checkpoint has none, and the host would leave it as the memory was: its pooled output, unused, could be anything.
        self.transformer.text_projection.weight.data.copy_(torch.eye(config["hidden_size"]))


class DemoTokenizer(comfy.sd1_clip.SDTokenizer):
    """The host's prompt parser (weights, embeddings, 77-token chunks) over the demo's byte-pair vocabulary."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            tokenizer_path=str(embedded.TOKENIZER),
            embedding_directory=embedding_directory,
            embedding_size=read_config()["text"]["hidden_size"],
            tokenizer_data=tokenizer_data or {},
        )


def _load_model(weights: dict, config: dict):
    model_config = comfy.supported_models.SD15(config["unet"])
    device = comfy.model_management.get_torch_device()
    dtype = comfy.model_management.unet_dtype(
        device=device, supported_dtypes=model_config.supported_inference_dtypes, model_params=len(weights)
    )
    manual_cast = comfy.model_management.unet_manual_cast(dtype, device, model_config.supported_inference_dtypes)
    model_config.set_inference_dtype(dtype, manual_cast)
    offload = comfy.model_management.unet_offload_device()
    model = model_config.get_model(weights, UNET, device=offload)
    model.load_model_weights(weights, UNET)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)
    patcher.set_attachments(ATTACHMENT, True)
    patcher.cached_patcher_init = (_load_model_anew, ())  # the own training of ComfyUI 0.33 asks for it
    return patcher


def _load_model_anew(disable_dynamic: bool = True):
    return _load_model(_weights(embedded.CHECKPOINT), read_config())


def _load_clip(weights: dict):
    target = comfy.supported_models.SD15({}).clip_target(state_dict=weights)
    options = {"clip_l_class": DemoTextEncoder}
    clip = comfy.sd.CLIP(target, tokenizer_data={"clip_l_tokenizer_class": DemoTokenizer}, model_options=options)
    clip.load_sd({k.replace(TEXT, "clip_l.", 1): v for k, v in weights.items() if k.startswith(TEXT)}, full_model=True)
    return clip


def _load_vae(weights: dict, config: dict):
    ddconfig = dict(config["vae"])
    state = {k[len(VAE) :]: v for k, v in weights.items() if k.startswith(VAE)}
    return comfy.sd.VAE(sd=state, config={"params": {"ddconfig": ddconfig, "embed_dim": ddconfig["z_channels"]}})


def _weights(path: Path) -> dict:
    if not path.is_file():
        raise UnsupportedModelError(
            f"The demo model's weights are missing ({path.name} in demo/model); get the pack again, "
            "or load a checkpoint of your own."
        )
    return comfy.utils.load_torch_file(str(path), safe_load=True)


class HyperSDDemoModel(io.ComfyNode):
    """MODEL, CLIP and VAE of the embedded model, with one of its Hyper-SD LoRAs if wanted."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDDemoModel",
            display_name="Hyper-SD Demo Model",
            category=CATEGORY,
            **found_as("emoji", "test model", "tiny", "example"),
            description="A small model that ships with the pack and paints emoji at 128x128, to try workflows on any machine.",
            inputs=[
                io.Combo.Input(
                    "hyper_sd_lora",
                    options=[BASE, *embedded.LORA_TITLES],
                    default=BASE,
                    optional=True,
                    tooltip="The demo model's own distilled LoRA. Unified: any of 1 to 8 steps with num_segments 1. The "
                    "others: exactly that many steps, with num_segments the same; one step with start_timestep 800. CFG 1 with "
                    "each of them; CFG 4 and about 25 steps without.",
                )
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, hyper_sd_lora: str = BASE) -> io.NodeOutput:
        require_choice("hyper_sd_lora", hyper_sd_lora, [BASE, *embedded.LORA_TITLES])
        weights = _weights(embedded.CHECKPOINT)
        config = read_config()
        model = _load_model(dict(weights), config)
        if hyper_sd_lora != BASE:
            lora = _weights(embedded.lora_file(*embedded.LORA_TITLES[hyper_sd_lora]))
            model, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        return io.NodeOutput(model, _load_clip(weights), _load_vae(weights, config))


class HyperSDDemoControlNet(io.ComfyNode):
    """The embedded model's ControlNet, which follows outlines: a control LoRA, in the host's own form."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDDemoControlNet",
            display_name="Hyper-SD Demo ControlNet",
            category=CATEGORY,
            **found_as("emoji", "outlines", "canny", "example"),
            description="The demo model's own ControlNet. It follows outlines, white on black, as the Canny node finds them.",
            inputs=[],
            outputs=[io.ControlNet.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(comfy.controlnet.load_controlnet_state_dict(_weights(embedded.CONTROLNET)))


NODES = [HyperSDDemoModel, HyperSDDemoControlNet]
