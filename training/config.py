"""The settings of a training run, as frozen values that are checked once."""

import math
from dataclasses import dataclass

from ..errors import TrainingError
from ..samplers.timesteps import LAST_TIMESTEP, ONE_STEP_START
from .checks import require_types
from .feedback.settings import FeedbackSettings
from .segments import ENDPOINTS, solver_grid

OBJECTIVES, DISTANCES = ("tscd", "finetune", "feedback"), ("huber", "mse")
PRECISIONS, REALS = ("fp32", "bf16", "fp16"), ("target", "data")
GRAPHS, OPTIMIZERS = ("auto", "off"), ("adamw", "adamw8bit")


@dataclass(frozen=True)
class Stage:
    """One stretch of training on a number of segments.

    Args:
        num_segments: k; ignored by the objectives "finetune" and "feedback".
        steps: optimizer steps.
        distance_weight: of the distance in the student's loss; in a stage for one step, of the consistency that is mixed in.
        adversarial_weight: of the discriminator's part in the student's loss.
        learning_rate: of the student; None takes the run's.
        score_weight: of the distribution matching gradient; above 0 the stage is for one step.
        pair_weight: of the distance to the teacher's own pictures of many steps; above 0 the stage is for one step.
    """

    num_segments: int
    steps: int
    distance_weight: float = 1.0
    adversarial_weight: float = 0.0
    learning_rate: float | None = None
    score_weight: float = 0.0
    pair_weight: float = 0.0

    @property
    def is_one_step(self) -> bool:
        """Whether the stage trains the one step from TrainingConfig.start_timestep."""
        return bool(self.score_weight or self.pair_weight)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of all parts of the student's loss."""
        return self.distance_weight, self.adversarial_weight, self.score_weight, self.pair_weight


def progressive_stages(steps: int, adversarial_weight: float = 0.1) -> tuple[Stage, ...]:
    """Returns the paper's stages of 8, 4, 2 and 1 segments: the distance alone for 8 and 4, the adversarial loss from 2 on.

    Source: Hyper-SD, arXiv 2404.13686, section 3.2. The paper gives no weight; 0.1 is usual in public code of this kind.
    Args:
        steps: optimizer steps of each stage.
        adversarial_weight: of the last stage; the one before has half of it.
    """
    weights = {8: 0.0, 4: 0.0, 2: adversarial_weight / 2, 1: adversarial_weight}
    return tuple(Stage(k, steps, 1.0, weight) for k, weight in weights.items())


@dataclass(frozen=True)
class TrainingConfig:
    """A run of one or more stages, the weights carried over from each to the next.

    Args:
        stages: at least one.
        objective: "tscd", distillation, "finetune", plain denoising, or "feedback", better pictures by the measure of rewards.
        batch_size: examples per optimizer step, over all processes and accumulated parts.
        accumulation: parts a process splits its share of the batch into.
        learning_rate: of the student.
        warmup_steps: in which the rate of every stage rises linearly.
        final_rate: factor that the rate of every stage falls to, as a cosine; 1 keeps it constant.
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
        ema_decay: of the target, per step.
        guidance_scale: (lowest, highest) of the teacher, drawn uniformly between them; (1, 1) is no guidance.
        solver_steps: of the teacher's grid; a divisor of 1000.
        endpoint: "random" (TSCD; CTM with one segment) or "boundary" (PCM).
        distance: "mse", or "huber", sqrt(d^2 + c^2) - c.
        huber_c: c of "huber".
        offset_noise: strength of a constant that is added to the noise of every channel; 0 is none.
        adversarial_real: what the discriminator takes for real. "target" is the target's jump, which the heads hardly tell
            from the student's. "data" are the examples, noised to t_end, which make one step much sharper and draw it away
            from the guided teacher (docs/benchmarks.md). A stage for one step always takes the examples.
        discriminator_learning_rate: of the heads, and of the backbone's adapters.
        start_timestep: that the one step of a stage for one step starts from, with noise of deviation 1; 1 to 999.
        fake_learning_rate: of the fake score.
        fake_updates: of the fake score for each of the student.
        fake_warmup: steps at the beginning of a stage for one step in which the fake score learns and the student rests.
        pairs: how many pictures the teacher draws for a stage with a pair_weight.
        pair_steps: of the teacher's solver for these pictures; a divisor of 1000.
        train_backbone: gives the discriminator's backbone an adapter set of its own.
        rank: of every adapter set.
        lora_alpha: of every adapter set; None takes the rank, which is scale 1.
        precision: of the arithmetic, "fp32", "bf16" or "fp16"; the adapters stay in float32.
        gradient_checkpointing: recomputes blocks in the backward pass, slower and smaller.
        cuda_graphs: "auto" records each pass of a step on a card and replays it, where that is possible; "off" never does.
        optimizer: "adamw", or "adamw8bit", which keeps its moments in 8 bits: 2 bytes for each weight instead of 8. It needs a
            card and the package bitsandbytes, and learns nearly the same.
        seed: of everything that is drawn.
        checkpoint_every: optimizer steps between two checkpoints.
        feedback: how the objective "feedback" asks for better pictures; None for the other objectives.
    Raises: TrainingError naming the value, what is allowed and what to use.
    """

    stages: tuple[Stage, ...]
    objective: str = "tscd"
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 50
    final_rate: float = 1.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.95
    guidance_scale: tuple[float, float] = (2.0, 9.0)
    solver_steps: int = 50
    endpoint: str = "random"
    distance: str = "huber"
    huber_c: float = 0.001
    offset_noise: float = 0.0
    adversarial_real: str = "target"
    discriminator_learning_rate: float = 1e-4
    start_timestep: int = ONE_STEP_START
    fake_learning_rate: float = 1e-4
    fake_updates: int = 2
    fake_warmup: int = 20
    pairs: int = 1024
    pair_steps: int = 50
    train_backbone: bool = False
    rank: int = 64
    lora_alpha: float | None = None
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    cuda_graphs: str = "auto"
    optimizer: str = "adamw"
    seed: int = 0
    checkpoint_every: int = 200
    feedback: FeedbackSettings | None = None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                usual = getattr(TrainingConfig, name)
                raise TrainingError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}; use {usual!r}.")
        require_types(self, *self.stages)
        solver_grid(self.solver_steps), solver_grid(self.pair_steps, "pair_steps")
        for name, (low, high, hint) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise TrainingError(f"{name} must lie in [{low:g}, {high:g}], got {value}; {hint}.")
        if not self.stages or any(stage.steps < 1 or not 1 <= stage.num_segments <= self.solver_steps for stage in self.stages):
            raise TrainingError(f"stages need 1 step or more and 1 to {self.solver_steps} segments each, got {self.stages}.")
        if any(not math.isfinite(weight) or weight < 0 for stage in self.stages for weight in stage.weights):
            raise TrainingError(f"the weights of a stage must be 0 or more, got {self.stages}.")
        if self.objective == "tscd" and not all(any(stage.weights) for stage in self.stages):
            raise TrainingError(f"a stage needs one weight above 0 to learn by, got {self.stages}; distance_weight 1 is usual.")
        if self.objective != "tscd" and any(stage.is_one_step for stage in self.stages):
            raise TrainingError(f'score_weight and pair_weight need objective "tscd", got {self.objective!r}; leave them out.')
        if (self.objective == "feedback") != (self.feedback is not None):
            raise TrainingError(f'Settings of feedback and the objective "feedback" belong together, got {self.objective!r}.')
        low, high = self.guidance_scale
        if not 0 <= low <= high < math.inf:
            raise TrainingError(f"guidance_scale must be (lowest, highest), 0 or more, got {self.guidance_scale}; use (2, 9).")

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def has_target(self) -> bool:
        """Whether a moving average of the student is kept: some stage is a consistency distillation, which looks at it."""
        return self.objective == "tscd" and any(not stage.is_one_step or stage.distance_weight for stage in self.stages)

    @property
    def is_guided(self) -> bool:
        """Whether the teacher is guided, which takes the conditioning of the empty prompt."""
        return self.objective == "tscd" and self.guidance_scale != (1.0, 1.0)

    @property
    def is_adversarial(self) -> bool:
        """Whether any stage has a discriminator."""
        return self.objective == "tscd" and any(stage.adversarial_weight for stage in self.stages)

    @property
    def has_fake(self) -> bool:
        """Whether any stage needs a fake score."""
        return any(stage.score_weight for stage in self.stages)

    @property
    def graphs(self) -> int:
        """How many passes of the student one loss goes back through at most."""
        if self.feedback is not None:
            return bool(self.feedback.rewards) + bool(self.feedback.instance_weight)
        return max(
            sum(map(bool, (s.distance_weight, s.score_weight or s.adversarial_weight, s.pair_weight))) if s.is_one_step else 1
            for s in self.stages
        )

    def part_size(self, world: int = 1) -> int:
        """Returns how many examples each of `world` processes takes at once.

        Raises: TrainingError where the batch does not divide.
        """
        share = world * self.accumulation
        if self.batch_size % share:
            raise TrainingError(
                f"batch_size {self.batch_size} must divide by {world} processes x {self.accumulation} accumulated parts; "
                f"use a multiple of {share}."
            )
        return self.batch_size // share

    def stage_at(self, step: int) -> tuple[int, int]:
        """Returns (index of the stage, step inside it) of optimizer step `step`, counted from 0."""
        inside = step
        for index, stage in enumerate(self.stages):
            if inside < stage.steps:
                return index, inside
            inside -= stage.steps
        raise TrainingError(f"The run ends before step {step}.")

    def ends_stage(self, steps_done: int) -> bool:
        """Returns whether a stage ends with this step; `steps_done` counts it already."""
        index, inside = self.stage_at(steps_done - 1)
        return inside == self.stages[index].steps - 1

    def rate_at(self, step: int) -> float:
        """Returns the factor of the learning rate at `step` counted from 0, relative to the run's learning_rate."""
        index, inside = self.stage_at(step)
        stage = self.stages[index]
        own = 1.0 if stage.learning_rate is None else stage.learning_rate / self.learning_rate
        warm = min(1.0, (inside + 1) / max(self.warmup_steps, 1))
        fall = (1 + math.cos(math.pi * inside / stage.steps)) / 2
        return own * warm * (self.final_rate + (1 - self.final_rate) * fall)


_CHOICES = {
    "objective": OBJECTIVES, "endpoint": ENDPOINTS, "distance": DISTANCES, "precision": PRECISIONS, "adversarial_real": REALS,
    "cuda_graphs": GRAPHS, "optimizer": OPTIMIZERS,
}  # fmt: skip
_RANGES = {
    "batch_size": (1, 2**20, "16 is a start"), "accumulation": (1, 2**16, "1 does not split"),
    "learning_rate": (1e-12, 1, "1e-4 is usual for LoRA"), "discriminator_learning_rate": (1e-12, 1, "1e-4 is usual"),
    "warmup_steps": (0, 2**31, "50 is usual"), "final_rate": (0, 1, "1 keeps the rate constant"),
    "weight_decay": (0, 1, "0 is usual for LoRA"), "max_grad_norm": (1e-6, 1e6, "1 is usual"),
    "ema_decay": (0, 1, "0.95 is usual"), "huber_c": (1e-8, 10, "0.001 is usual"), "offset_noise": (0, 1, "0.05 is usual"),
    "start_timestep": (1, LAST_TIMESTEP, "800 is the one-step UNet's"), "fake_learning_rate": (1e-12, 1, "2e-4 is usual"),
    "fake_updates": (1, 1000, "2 is usual"), "fake_warmup": (0, 2**31, "20 is usual"), "pairs": (1, 2**31, "1024 is a start"),
    "rank": (1, 4096, "64 is the released LoRAs'"), "lora_alpha": (1e-6, 4096, "leave it out for scale 1"),
    "seed": (0, 2**63 - 1, "any whole number"), "checkpoint_every": (1, 2**31, "200 is usual"),
}  # fmt: skip
