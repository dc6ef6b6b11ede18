"""The arms of the distillation benchmark: how each student is trained, and at which settings it is drawn from."""

from dataclasses import dataclass, replace

from ..samplers.timesteps import LAST_TIMESTEP
from ..training.config import Stage, TrainingConfig, progressive_stages

STEPS, ETAS = (1, 2, 4, 8), (0.0, 0.3, 0.5, 0.7, 1.0)
GUIDANCE, ADVERSARIAL = (2.5, 3.5), 0.1
TOTAL_STEPS = 1000
COMMON = TrainingConfig(
    stages=(Stage(1, TOTAL_STEPS),), batch_size=64, learning_rate=6e-3, warmup_steps=20, final_rate=0.1, ema_decay=0.95,
    guidance_scale=GUIDANCE, rank=32, discriminator_learning_rate=1e-3, checkpoint_every=400,
)  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """How samples are taken.

    Args:
        steps: model evaluations.
        num_segments: of the sampler.
        eta: of the sampler, 0 deterministic .. 1.
        start_timestep: of the first step, 0 to 999.
    """

    steps: int
    num_segments: int = 1
    eta: float = 0.0
    start_timestep: int = LAST_TIMESTEP

    @property
    def key(self) -> str:
        """What the draw is called in the results."""
        start = "" if self.start_timestep == LAST_TIMESTEP else f", from {self.start_timestep}"
        return f"{self.steps} steps, {self.num_segments} segments, eta {self.eta:g}{start}"


@dataclass(frozen=True)
class Arm:
    """One student.

    Args:
        config: the settings it is trained with.
        draws: the ways it is sampled.
    """

    config: TrainingConfig
    draws: tuple[Draw, ...]


def whole_range(etas: tuple[float, ...], steps: tuple[int, ...] = STEPS) -> tuple[Draw, ...]:
    """Returns the draws of a LoRA for any number of steps; at one step eta has no effect and is left at 0."""
    return tuple(Draw(n, 1, eta) for n in steps for eta in (etas if n > 1 else (0.0,)))


def arms(total_steps: int = TOTAL_STEPS) -> dict[str, Arm]:
    """Returns the arms by name; all of them train for `total_steps` and differ in what their names say."""

    def config(stages: tuple[Stage, ...], **changes) -> TrainingConfig:
        return replace(COMMON, stages=stages, **changes)

    quarter = total_steps // 4
    scheduled = progressive_stages(quarter, ADVERSARIAL)
    distance = tuple(replace(stage, adversarial_weight=0.0) for stage in scheduled)
    adversarial = tuple(replace(stage, adversarial_weight=ADVERSARIAL) for stage in scheduled)
    both = (0.3, 1.0)
    return {
        "progressive": Arm(config(distance), whole_range(ETAS)),
        "direct_1": Arm(config((Stage(1, total_steps),)), whole_range(both)),
        "direct_2": Arm(config((Stage(2, total_steps),)), (Draw(2, 2),)),
        "direct_4": Arm(config((Stage(4, total_steps),)), (Draw(4, 4), Draw(8, 4, 0.3))),
        "direct_8": Arm(config((Stage(8, total_steps),)), (Draw(8, 8),)),
        "lcm": Arm(config((Stage(1, total_steps),), endpoint="boundary"), whole_range(both)),
        "pcm_4": Arm(config((Stage(4, total_steps),), endpoint="boundary"), (Draw(4, 4), Draw(8, 4, 0.3))),
        "pcm_progressive": Arm(config(distance, endpoint="boundary"), whole_range(both)),
        "scheduled": Arm(config(scheduled), whole_range(both)),
        "scheduled_data": Arm(config(scheduled, adversarial_real="data"), whole_range(both)),
        "adversarial": Arm(config(adversarial), whole_range(both)),
    }
