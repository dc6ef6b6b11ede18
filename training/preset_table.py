"""The sizes of run that a person chooses from, for each family of models."""

from dataclasses import dataclass

from ..models.lora_plan import EMBEDDED


@dataclass(frozen=True)
class Preset:
    """A size of run for one family of models.

    Args:
        steps: optimizer steps of all phases, without the one for one step.
        rank: of the LoRA.
        batch_size: examples a step.
        style_rate: learning rate of a style.
        distil_rate: learning rate of a distillation.
        refine_rate: learning rate of a distillation after a style that starts from a distilled LoRA.
        feedback_rate: learning rate of human feedback.
        stages: numbers of segments of a distillation that starts from the base model.
        one_step_rate: learning rate of the phase for one step.
        fake_rate: learning rate of its fake score.
        one_step_share: of the steps of a run with that phase, those of the phase; `steps` are the others.
        pair_steps: solver steps of the pictures that the teacher draws for it.
    """

    steps: int
    rank: int
    batch_size: int
    style_rate: float
    distil_rate: float
    refine_rate: float
    feedback_rate: float
    stages: tuple[int, ...]
    one_step_rate: float = 5e-5
    fake_rate: float = 1e-4
    one_step_share: float = 0.5
    pair_steps: int = 50


# 1e-4 is usual for LoRAs of these models; the embedded model is a fiftieth of SD1.5's size and learns
# at 10 to 30 times that rate (demo/recipe/distill.py; 20 drawings in another style show at 4 steps after 60 steps at 3e-3).
# What follows a style has little left to learn there, and loses of the style at a higher rate (docs/benchmarks.md).
_EMBEDDED = {"one_step_rate": 1e-3, "fake_rate": 2e-3, "pair_steps": 25}
PRESETS: dict[str, dict[str, Preset]] = {
    "Small": {
        "sd15": Preset(300, 16, 2, 1e-4, 1e-4, 1e-4, 5e-5, (4, 2, 1)),
        "sdxl": Preset(300, 16, 1, 1e-4, 1e-4, 1e-4, 5e-5, (4, 2, 1)),
        EMBEDDED: Preset(60, 8, 8, 3e-3, 1.5e-3, 5e-4, 5e-4, (4, 1), **_EMBEDDED),
    },
    "Medium": {
        "sd15": Preset(1000, 32, 4, 1e-4, 1e-4, 1e-4, 5e-5, (8, 4, 2, 1)),
        "sdxl": Preset(1000, 32, 2, 1e-4, 1e-4, 1e-4, 5e-5, (8, 4, 2, 1)),
        EMBEDDED: Preset(200, 8, 8, 3e-3, 1.5e-3, 5e-4, 5e-4, (8, 4, 2, 1), **_EMBEDDED),
    },
    "Thorough": {
        "sd15": Preset(3000, 64, 4, 1e-4, 1e-4, 1e-4, 5e-5, (8, 4, 2, 1)),
        "sdxl": Preset(3000, 64, 4, 1e-4, 1e-4, 1e-4, 5e-5, (8, 4, 2, 1)),
        EMBEDDED: Preset(600, 16, 16, 3e-3, 1.5e-3, 5e-4, 5e-4, (8, 4, 2, 1), **_EMBEDDED),
    },
}
FAMILIES = tuple(PRESETS["Small"])
