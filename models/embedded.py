"""The embedded model's files: a small emoji painter of SD1.5's topology that ships with the pack, and its Hyper-SD LoRAs."""

from pathlib import Path

from ..errors import UnsupportedModelError

FAMILY = "sd15"  # whose rules and names hold for it
EMBEDDED = "embedded"  # stands where a family's key would, for what was measured or set on this model alone
FOLDER = Path(__file__).resolve().parents[1] / "demo" / "model"
CONFIG = FOLDER / "config.json"
TOKENIZER = FOLDER / "tokenizer"
CHECKPOINT = FOLDER / "hyper_sd_demo.safetensors"
CONTROLNET = FOLDER / "hyper_sd_demo_outlines_control_lora.safetensors"
SCORERS = FOLDER / "hyper_sd_demo_scorers.safetensors"
LABELS = FOLDER / "labels.txt"  # one a line: everything that it has learnt to draw, in emojibase's order
SIZE = 128  # side in pixels of the squares it draws
UNIFIED_STEPS = 8  # the most that its unified LoRA is made for

LoraKey = tuple[str, int]  # variant and steps, as an entry of the catalogue has them: the unified LoRA's number is 1
UNIFIED: LoraKey = ("unified", 1)
ONE_STEP: LoraKey = ("n-step", 1)  # trained for one step from the timestep that its metadata says
LORAS: dict[LoraKey, Path] = {
    key: FOLDER / f"hyper_sd_demo_{key[1]}step{'s' * (key[1] > 1)}_lora.safetensors"
    for key in (UNIFIED, ("n-step", 8), ("n-step", 4), ("n-step", 2))
}
LORAS[ONE_STEP] = FOLDER / "hyper_sd_demo_one_step_lora.safetensors"


def lora_title(key: LoraKey) -> str:
    """Returns the name under which the nodes offer a LoRA; saved workflows hold it."""
    variant, steps = key
    if variant == "unified":
        return f"unified, 1 to {UNIFIED_STEPS} steps"
    return "one step" if key == ONE_STEP else f"{steps} steps"


LORA_TITLES: dict[str, LoraKey] = {lora_title(key): key for key in LORAS}


def lora_file(variant: str, steps: int) -> Path:
    """Returns a LoRA's file.

    Args:
        variant: "unified" or "n-step".
        steps: the number that it was made for: 1 for the unified one, too.
    Raises: UnsupportedModelError when the embedded model has no such LoRA.
    """
    if (variant, steps) not in LORAS:
        raise UnsupportedModelError(
            "The demo model has a unified LoRA, and some for 1, 2, 4 and 8 steps; choose auto, unified or n-step, 1 to 8 steps."
        )
    return LORAS[variant, steps]
