"""What a person asks of a training, and what its runs are set to where that is only an objective and a size."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ..errors import TrainingError
from ..models.lora_plan import EMBEDDED
from .config import GRAPHS, OPTIMIZERS, Stage, TrainingConfig
from .feedback.choice import SCORER_CHOICES, feedback_of, rate_of
from .preset_table import FAMILIES, PRESETS, Preset
from .words import AUTO, DISTIL, FEEDBACK, NONE, OBJECTIVES, OFF, ON, STYLE, STYLE_THEN_DISTIL

STYLE_SHARE = 0.4  # of the steps of "style, then distil"
MOST_SEGMENTS, MOST_STRENGTH = 8, 2
ONE_STEP = "one step"
SCORE_WEIGHT, PAIR_WEIGHT = 0.5, 1.0  # of a stage for one step, as measured best on small digits
FAKE_UPDATES, FAKE_WARMUP = 2, 20
MOST_PAIRS, PAIRS_SHARE = 1024, 6  # the teacher draws its pictures in less time than the steps take that learn from them
# Of the single segment; half at two, none above, as in the paper. The heads have a few steps only: they learn fast.
ADVERSARIAL_WEIGHT, HEADS_RATE = 0.1, 1e-3


CHOICES = {
    "objective": OBJECTIVES,
    "preset": tuple(PRESETS),
    "gradient_checkpointing": (AUTO, ON),
    "adversarial": (AUTO, ON, OFF),
    "one_step": (AUTO, ON, OFF),
    "cuda_graphs": GRAPHS,
    "optimizer": OPTIMIZERS,
    **SCORER_CHOICES,
}


@dataclass(frozen=True)
class TrainRequest:
    """What a person asks of a training, under the names of the node's inputs, which are those of a run file, too.

    Args:
        objective: one of OBJECTIVES.
        preset: one of PRESETS.
        steps: optimizer steps of all phases together; 0 takes the preset's.
        rank: of the LoRA; 0 takes the preset's.
        learning_rate: of every phase; 0 takes the preset's.
        name: of the training; its folder begins with it.
        start_from: "none", "Hyper-SD unified", or a LoRA that the caller knows by this name.
        stages: segments of the distillation as parse_stages() reads them; "auto" takes the preset's, or one segment alone
            where the LoRA to start from is distilled.
        batch_size: examples a step; 0 takes the preset's, but no more than there are examples.
        teacher_cfg: guidance scale that is distilled; 1 is no guidance.
        seed: of everything that is drawn.
        gradient_checkpointing: "on", or "auto" for where the training would not fit otherwise.
        adversarial: whether a distillation after a style also learns what the examples look like, from a discriminator:
            "on", "off", or "auto", which is on for the embedded model alone, where it is measured (docs/benchmarks.md); for
            the others it takes gigabytes more.
        preview_every: steps between two sheets of samples; 0 is about eight times a training.
        one_step: whether "TSCD distillation" goes on with a phase that makes a LoRA of its own for exactly one step: "on",
            "off", or "auto", which is on for the embedded model alone. A preset then takes five to six times as long. Needs a
            distillation that ends on 1 segment; where it does not, "auto" is off.
        cuda_graphs: as TrainingConfig.cuda_graphs: "auto", or "off" for plain steps on a card, too. Another value goes on with
            the same run.
        optimizer: as TrainingConfig.optimizer.
        reward: the scorer that "human feedback" learns from: its id, or "auto", which is the paper's ImageReward, and
            for the embedded model its match score.
        second_reward: one more, "none", or "auto", which is the paper's aesthetic score beside ImageReward.
        held_out_reward: a scorer that nothing is learnt from, whose fall ends the run; "none", or "auto", which takes one
            whose files are there.
        perceptual_weight: of what a network that sees things says of real pictures, noised part of the way and cleaned in
            one step; 0 is off, and needs no pictures.
        feedback_strength: at which the feedback is merged into the LoRA it starts from, 0 to 2.
    Raises: TrainingError for a value that its list does not have.
    """

    objective: str = STYLE_THEN_DISTIL
    preset: str = next(iter(PRESETS))
    steps: int = 0
    rank: int = 0
    learning_rate: float = 0.0
    name: str = "my_style"
    start_from: str = NONE
    stages: str = AUTO
    batch_size: int = 0
    teacher_cfg: float = 5.0
    seed: int = 0
    gradient_checkpointing: str = AUTO
    adversarial: str = AUTO
    preview_every: int = 0
    one_step: str = AUTO
    cuda_graphs: str = AUTO
    optimizer: str = OPTIMIZERS[0]
    reward: str = AUTO
    second_reward: str = AUTO
    held_out_reward: str = AUTO
    perceptual_weight: float = 0.0
    feedback_strength: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            _require_one_of(name, getattr(self, name), allowed)
        if not 0 <= self.feedback_strength <= MOST_STRENGTH:
            raise TrainingError(
                f"feedback_strength must lie in [0, {MOST_STRENGTH}], got {self.feedback_strength}; 1 is usual."
            )


@dataclass(frozen=True)
class Phase:
    """One of the runs that a training consists of; what the student learns in one is carried over to the next.

    Args:
        title: what the run does, for a progress text.
        config: of the run.
    """

    title: str
    config: TrainingConfig

    def changed(self, **settings: Any) -> "Phase":
        """Returns the phase with other values for some settings of its run."""
        return replace(self, config=replace(self.config, **settings))


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
    request: TrainRequest,
    family: str,
    *,
    examples: int,
    precision: str = "fp32",
    starts_distilled: bool = False,
    start_steps: int = 1,
    scorers: Collection[str] = (),
) -> tuple[Phase, ...]:
    """Returns the runs that lead to the LoRA, first to last: plain denoising, TSCD, the one and then the other, or feedback.

    A distillation alone may be followed by a run for one step; see TrainRequest.one_step.

    Args:
        request: what a person asks for.
        family: one of FAMILIES.
        examples: how many there are.
        precision: of the arithmetic, as TrainingConfig.precision.
        starts_distilled: training goes on from a LoRA that is distilled to one segment, such as the unified one.
        start_steps: that the LoRA to start from is made for, 1 for any number; feedback draws with it.
        scorers: ids of those whose files are there.
    Raises: TrainingError naming the value, what is allowed and what to use.
    """
    _require_one_of("family", family, FAMILIES)
    preset, objective = PRESETS[request.preset][family], request.objective
    shared = _shared(request, preset, examples, precision)
    if objective == FEEDBACK:
        feedback = feedback_of(request, is_embedded=family == EMBEDDED, start_steps=start_steps, ready=scorers)
        rate = request.learning_rate or rate_of(feedback, preset.feedback_rate)
        stages = (Stage(1, request.steps or preset.steps),)
        return (Phase(FEEDBACK, _config(stages, objective="feedback", learning_rate=rate, feedback=feedback, **shared)),)
    automatic = (1,) if starts_distilled else preset.stages
    segments = automatic if objective == STYLE or request.stages.strip().lower() == AUTO else parse_stages(request.stages)
    once = _has_one_step(request, family, segments)
    steps, one_step_steps = _shared_out(request, preset, once)
    style_steps = {STYLE: steps, DISTIL: 0}.get(objective, round(STYLE_SHARE * steps))
    planned = []
    if objective != DISTIL:
        rate = request.learning_rate or preset.style_rate
        style = _config((Stage(1, style_steps),), objective="finetune", distance="mse", learning_rate=rate, **shared)
        planned.append(Phase("style", style))
    if objective != STYLE:
        refines = starts_distilled and objective == STYLE_THEN_DISTIL
        shared["learning_rate"] = request.learning_rate or (preset.refine_rate if refines else preset.distil_rate)
        stages = _equal_stages(segments, steps - style_steps, and_one_step=once)
        planned.append(Phase("distillation", _distillation(request, stages, family, shared)))
    if once:
        planned.append(Phase(ONE_STEP, _one_step(request, one_step_steps, preset, shared)))
    return tuple(planned)


def _shared(request: TrainRequest, preset: Preset, examples: int, precision: str) -> dict[str, Any]:
    """Returns the settings that all phases have."""
    return {
        "rank": request.rank or preset.rank,
        "batch_size": request.batch_size or max(1, min(preset.batch_size, examples)),
        "gradient_checkpointing": request.gradient_checkpointing == ON,
        "cuda_graphs": request.cuda_graphs,
        "optimizer": request.optimizer,
        "seed": request.seed,
        "precision": precision,
        "final_rate": 0.1,
    }


def _shared_out(request: TrainRequest, preset: Preset, once: bool) -> tuple[int, int]:
    """Returns the steps of all phases but the one for one step, and those of that one."""
    share = preset.one_step_share if once else 0.0
    total = request.steps or round(preset.steps / (1 - share))
    one_step_steps = max(1, round(share * total)) if once else 0
    return total - one_step_steps, one_step_steps


def _has_one_step(request: TrainRequest, family: str, segments: tuple[int, ...]) -> bool:
    """Returns whether a phase for one step follows the distillation.

    Raises: TrainingError where it is asked for and cannot be.
    """
    if request.one_step == ON and request.objective != DISTIL:
        raise TrainingError(
            f'one_step "{ON}" needs the objective "{DISTIL}", got "{request.objective}"; use "{AUTO}" or "{OFF}".'
        )
    if request.one_step == ON and segments[-1] != 1:
        raise TrainingError(
            f'one_step "{ON}" needs a distillation that ends on 1 segment, got stages {"-".join(map(str, segments))}; let them '
            f'end on 1, or set one_step to "{OFF}".'
        )
    is_wanted = request.one_step == ON or (request.one_step == AUTO and family == EMBEDDED)
    return is_wanted and request.objective == DISTIL and segments[-1] == 1


def _one_step(request: TrainRequest, steps: int, preset: Preset, shared: Mapping[str, Any]) -> TrainingConfig:
    """Returns the run for one step; a learning rate that was given keeps the preset's ratio to the fake score's."""
    rate = request.learning_rate or preset.one_step_rate
    chunks = max(1, PAIRS_SHARE * steps // preset.pair_steps)  # batches of the teacher's pictures
    settings = {
        **shared,
        "learning_rate": rate,
        "fake_learning_rate": rate * preset.fake_rate / preset.one_step_rate,
        "fake_updates": FAKE_UPDATES,
        "fake_warmup": min(FAKE_WARMUP, steps // 5),
        "pairs": min(MOST_PAIRS, chunks * shared["batch_size"]),
        "pair_steps": preset.pair_steps,
        "guidance_scale": (request.teacher_cfg, request.teacher_cfg),
    }
    stage = Stage(1, steps, distance_weight=0.0, score_weight=SCORE_WEIGHT, pair_weight=PAIR_WEIGHT)
    return _config((stage,), **settings)


def _distillation(request: TrainRequest, stages: tuple[Stage, ...], family: str, shared: Mapping[str, Any]) -> TrainingConfig:
    adversarial = family == EMBEDDED if request.adversarial == AUTO else request.adversarial == ON
    settings = {"guidance_scale": (request.teacher_cfg, request.teacher_cfg), **shared}
    if adversarial and request.objective == STYLE_THEN_DISTIL:
        stages = tuple(replace(stage, adversarial_weight=_adversarial_weight(stage.num_segments)) for stage in stages)
        settings |= {"adversarial_real": "data", "discriminator_learning_rate": HEADS_RATE}
    return _config(stages, **settings)


def _require_one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise TrainingError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def _equal_stages(segments: tuple[int, ...], steps: int, and_one_step: bool = False) -> tuple[Stage, ...]:
    """Shares the steps out evenly; the last stages get those that are left over: a single step asks the most."""
    if steps < len(segments) and and_one_step:
        raise TrainingError(
            f"{max(steps, 0)} steps are too few for the {len(segments)} stages {'-'.join(map(str, segments))} before one step; "
            f'use {2 * len(segments)} steps or more in all, fewer stages, or one_step "{OFF}".'
        )
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
