"""Where each host keeps which kind of file, below its folder of models, and by which endings it knows one."""

# Sources: ComfyUI's folder_paths; AUTOMATIC1111's and its forks' modules/sd_models.py and extensions-builtin/Lora/preload.py.
# Only ComfyUI has a folder for a UNet alone. Among the A1111 family's checkpoints it would be listed as one, load without an
# error and give garbage, so it gets ComfyUI's there too, in which this pack alone looks. Forge takes one among its checkpoints,
# with text encoders beside it: it may lie there already.
# The scorers' files are this pack's own business, so they have a folder of their own under one name everywhere.
REWARDS = "hyper_sd_rewards"
HOST_FOLDERS: dict[str, dict[str, tuple[str, ...]]] = {
    "comfyui": {
        "loras": ("loras",),
        "diffusion_models": ("diffusion_models", "unet"),
        "checkpoints": ("checkpoints",),
        REWARDS: (REWARDS,),
    },
    "a1111": {
        "loras": ("Lora",),
        "diffusion_models": ("diffusion_models",),
        "checkpoints": ("Stable-diffusion",),
        REWARDS: (REWARDS,),
    },
    "forge": {
        "loras": ("Lora",),
        "diffusion_models": ("diffusion_models", "Stable-diffusion"),
        "checkpoints": ("Stable-diffusion",),
        REWARDS: (REWARDS,),
    },
}

SAFETENSORS = (".safetensors",)

# The endings, in any case, of files that each host lists and reads as safetensors files.
# Sources: ComfyUI's folder_paths and comfy.utils.load_torch_file; the A1111 family's sd_models and networks.
HOST_ENDINGS: dict[str, tuple[str, ...]] = {"comfyui": (*SAFETENSORS, ".sft"), "a1111": SAFETENSORS, "forge": SAFETENSORS}
