"""How much of the disk a training will take, asked before it starts."""

from .. import disk
from ..errors import TrainingError
from .config import TrainingConfig
from .job import Job
from .lora_layers import adaptable_layers

FLOAT32_BYTES, FLOAT16_BYTES = 4, 2
KEPT = 2  # checkpoints of a phase: the last and the one before


def require_room(job: Job) -> None:
    """Refuses a training whose checkpoints, and the LoRAs and pictures beside them, the disk has no room for.

    Args:
        job: the training.
    Raises: TrainingError naming what is needed and what is free.
    """
    layers = adaptable_layers(job.trainee.denoiser.network, job.excluded)
    widths = sum(len(layer.weight) + layer.weight[0].numel() for layer in layers.values())
    judges = job.heads * 3 * FLOAT32_BYTES  # with their two moments
    needed = KEPT * judges
    largest = 0
    for number, phase in enumerate(job.phases):
        config = phase.config
        # Student, two moments of the optimizer, its average; the teacher; the fake score and its two moments.
        copies = 3 + config.has_target + (number > 0 and job.taught) + 3 * config.has_fake
        checkpoint = widths * config.rank * copies * FLOAT32_BYTES
        largest = max(largest, checkpoint)
        needed += KEPT * checkpoint + _bytes_of_pairs(job, config)
        if config.objective == "tscd":
            needed += widths * config.rank * FLOAT16_BYTES * len(config.stages)
    needed += largest + judges  # the next stands beside them for a moment, then takes a name
    free = disk.free_bytes(job.folder)
    if free < needed + disk.SPARE:
        raise TrainingError(
            f"The checkpoints of this training take up to {disk.format_bytes(needed + disk.SPARE)}, and the disk of "
            f"{job.folder} has {disk.format_bytes(free)} left; make room, or choose a lower rank."
        )


def _bytes_of_pairs(job: Job, config: TrainingConfig) -> int:
    """Returns what the teacher's own pictures take on the disk, 0 where none are drawn."""
    if not any(stage.pair_weight for stage in config.stages):
        return 0
    chunks = min(-(-config.pairs // config.batch_size), config.total_steps)
    return chunks * config.batch_size * job.examples.largest().latents[0].numel() * FLOAT32_BYTES
