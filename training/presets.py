"""What a run is set to where a person gives only an objective and a size: the configs of its one or two phases."""

from dataclasses import dataclass, replace
from itertools import pairwise

from ..errors import TrainingError
from ..models.lora_plan import EMBEDDED
from .config import Stage, TrainingConfig

STYLE_THEN_DISTIL, STYLE, DISTIL = "style, then distil", "style finetune", "TSCD distillation"
OBJECTIVES = (STYLE_THEN_DISTIL, STYLE, DISTIL)
STYLE_SHARE = 0.4  # of the steps of "style, then distil"
AUTO = "auto"
MOST_SEGMENTS = 8
# Of the single segment; half at two, none above, as in the paper. The heads have a few steps only: they learn fast.
ADVERSARIAL_WEIGHT, HEADS_RATE = 0.1, 1e-3


@dataclass(frozen=True)
class Preset:
    """A size of run for one family of models.

    Args:
        steps: optimizer steps of all phases; rank: of the LoRA; batch_size: examples per step.
        style_rate, distil_rate: learning rates of the two phases.
        refine_rate: of a distillation after a style that starts from a distilled LoRA.
        stages: numbers of segments of a distillation that starts from the base model.
    """

    steps: int
    rank: int
    batch_size: int
    style_rate: float
    distil_rate: float
    refine_rate: float
    stages: tuple[int, ...]


# 1e-4 is usual for LoRAs of these models; the embedded model is a fiftieth of SD1.5's size and learns
# at 10 to 30 times that rate (demo/recipe/distill.py; 20 drawings in another style show at 4 steps after 60 steps at 3e-3).
# What follows a style has little left to learn there, and loses of the style at a higher rate (benchmarks/README.md).
PRESETS: dict[str, dict[str, Preset]] = {
    "Small": {
        "sd15": Preset(300, 16, 2, 1e-4, 1e-4, 1e-4, (4, 2, 1)),
        "sdxl": Preset(300, 16, 1, 1e-4, 1e-4, 1e-4, (4, 2, 1)),
        EMBEDDED: Preset(60, 8, 8, 3e-3, 1.5e-3, 5e-4, (4, 1)),
    },
    "Medium": {
        "sd15": Preset(1000, 32, 4, 1e-4, 1e-4, 1e-4, (8, 4, 2, 1)),
        "sdxl": Preset(1000, 32, 2, 1e-4, 1e-4, 1e-4, (8, 4, 2, 1)),
        EMBEDDED: Preset(200, 8, 8, 3e-3, 1.5e-3, 5e-4, (8, 4, 2, 1)),
    },
    "Thorough": {
        "sd15": Preset(3000, 64, 4, 1e-4, 1e-4, 1e-4, (8, 4, 2, 1)),
        "sdxl": Preset(3000, 64, 4, 1e-4, 1e-4, 1e-4, (8, 4, 2, 1)),
        EMBEDDED: Preset(600, 16, 16, 3e-3, 1.5e-3, 5e-4, (8, 4, 2, 1)),
    },
}
FAMILIES = tuple(PRESETS["Small"])


@dataclass(frozen=True)
class Phase:
    """One training run of a plan, the student carried over to the next. Args: title: what it does, for a progress text."""

    title: str
    config: TrainingConfig


def parse_stages(text: str) -> tuple[int, ...]:
    """Returns (8, 4, 2, 1) for "8-4-2-1".

    Raises: TrainingError for anything but whole numbers from 8 down to 1 that do not grow.
    """
    words = [word.strip() for word in text.split("-")]
    stages = tuple(int(word) for word in words if word.isdecimal())
    wrong_size = any(not 1 <= k <= MOST_SEGMENTS for k in stages)
    if len(stages) < len(words) or wrong_size or any(a < b for a, b in pairwise(stages)):
        raise TrainingError(
            f"stages must be numbers of segments from {MOST_SEGMENTS} down to 1 joined by hyphens, none above the one before, "
            f'got "{text}"; use "8-4-2-1", "4-2-1", "1" or "{AUTO}".'
        )
    return stages


def phases(
    objective: str,
    family: str,
    *,
    preset: str,
    examples: int,
    steps: int = 0,
    rank: int = 0,
    learning_rate: float = 0.0,
    stages: str = AUTO,
    batch_size: int = 0,
    guidance_scale: float = 5.0,
    seed: int = 0,
    precision: str = "fp32",
    starts_distilled: bool = False,
    adversarial: bool | None = None,
) -> tuple[Phase, ...]:
    """Returns the runs that lead to the LoRA, first to last: plain denoising, TSCD, or the one and then the other.

    Args:
        objective: one of OBJECTIVES; family: one of FAMILIES; preset: one of PRESETS.
        examples: how many there are; a preset's batch is no larger.
        steps: of all phases together; with rank, learning_rate and batch_size 0 takes the preset's, anything else counts.
        stages: as parse_stages; "auto" takes the preset's, and one segment alone where the LoRA starts distilled.
        guidance_scale: of the teacher, 1 = off.
        starts_distilled: training goes on from a LoRA that is distilled to one segment, such as the unified one.
        adversarial: the distillation after a style also learns what the examples look like, from a discriminator; None: for
            the embedded model, where it is measured (benchmarks/README.md); for the others it takes gigabytes more.
    Raises: TrainingError naming the value, what is allowed and what to use.
    """
    size = _preset(objective, family, preset)
    total = steps if steps != 0 else size.steps  # not `or`: a person's nan must reach the checks of TrainingConfig
    shared = {
        "rank": rank if rank != 0 else size.rank,
        "batch_size": batch_size if batch_size != 0 else max(1, min(size.batch_size, examples)),
        "seed": seed, "precision": precision, "final_rate": 0.1,
    }  # fmt: skip
    second = size.refine_rate if starts_distilled and objective == STYLE_THEN_DISTIL else size.distil_rate
    rates = [learning_rate if learning_rate != 0 else own for own in (size.style_rate, second)]
    style_steps = {STYLE: total, DISTIL: 0}.get(objective, round(STYLE_SHARE * total))
    made = []
    if objective != DISTIL:
        plan = (Stage(1, style_steps),)
        made.append(Phase("style", _config(plan, objective="finetune", distance="mse", learning_rate=rates[0], **shared)))
    if objective != STYLE:
        automatic = (1,) if starts_distilled else size.stages
        plan = _equal_stages(automatic if stages.strip().lower() == AUTO else parse_stages(stages), total - style_steps)
        distil = {"guidance_scale": (guidance_scale, guidance_scale), "learning_rate": rates[1], **shared}
        if objective == STYLE_THEN_DISTIL and (family == EMBEDDED if adversarial is None else adversarial):
            plan = tuple(replace(stage, adversarial_weight=_adversarial_weight(stage.num_segments)) for stage in plan)
            distil |= {"adversarial_real": "data", "discriminator_learning_rate": HEADS_RATE}
        made.append(Phase("distillation", _config(plan, **distil)))
    return tuple(made)


def _preset(objective: str, family: str, preset: str) -> Preset:
    choices = {"objective": (objective, OBJECTIVES), "family": (family, FAMILIES), "preset": (preset, tuple(PRESETS))}
    for name, (given, allowed) in choices.items():
        if given not in allowed:
            raise TrainingError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {given!r}.")
    return PRESETS[preset][family]


def _equal_stages(segments: tuple[int, ...], steps: int) -> tuple[Stage, ...]:
    """Shares the steps out evenly; the last stages get those that are left over: a single step asks the most."""
    if steps < len(segments):
        raise TrainingError(
            f"{steps} steps are too few for the {len(segments)} stages {'-'.join(map(str, segments))}; "
            f"use {len(segments)} steps or more, or fewer stages."
        )
    each, left = divmod(steps, len(segments))
    return tuple(Stage(k, each + (i >= len(segments) - left)) for i, k in enumerate(segments))


def _adversarial_weight(segments: int) -> float:
    return ADVERSARIAL_WEIGHT / segments if segments <= 2 else 0.0


def _config(stages: tuple[Stage, ...], **settings) -> TrainingConfig:
    steps = [stage.steps for stage in stages]
    return TrainingConfig(
        stages, warmup_steps=max(0, min(50, min(steps) // 10)), checkpoint_every=max(10, min(200, sum(steps) // 8)), **settings
    )
