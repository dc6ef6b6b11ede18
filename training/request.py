"""The job that follows from what a person asks of a training: phases, folder, memory, and what the LoRA's file says."""

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from ..errors import TrainingError
from ..models.families import FAMILIES
from ..models.lora_plan import EMBEDDED
from .config import TrainingConfig
from .data.examples import Examples
from .export import clean_name
from .feedback.judge import Judge
from .graphs import can_record
from .job import Job, Trainee
from .lora_layers import EXCLUDED
from .lora_tensors import concatenated, rank_of
from .memory import estimate, fit
from .optimizers import require_optimizer
from .phases import Outcome
from .plain_config import FREE_TO_CHANGE, to_plain
from .presets import ONE_STEP, Phase, TrainRequest, phases
from .words import FEEDBACK

SAMPLED = 16  # values of each tensor that enter a fingerprint
PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


@dataclass(frozen=True)
class StartingLora:
    """The LoRA that training starts from.

    Args:
        tensors: in kohya's names, under the trained one's modules; empty for no LoRA.
        is_distilled: whether it works at 1 to 8 steps already.
        changed: names of the network's modules that it changes.
        steps: that it is made for; 1 for any number, and where it is not known.
        start_timestep: where its one step starts, of a LoRA for exactly one step; None of others.
    """

    tensors: Mapping[str, torch.Tensor]
    is_distilled: bool = False
    changed: frozenset[str] = frozenset()
    steps: int = 1
    start_timestep: int | None = None

    @property
    def rank(self) -> int:
        """The highest rank of its modules, 0 for no LoRA."""
        return rank_of(self.tensors)

    @property
    def excluded(self) -> tuple[str, ...]:
        """Patterns of layers that are left alone: those of every training, without those of layers that the LoRA changes."""
        return tuple(pattern for pattern in EXCLUDED if not fnmatch.filter(self.changed, pattern))


def phases_of(
    request: TrainRequest, trainee: Trainee, examples: Examples, start: StartingLora, scorers: Collection[str] = ()
) -> tuple[Phase, ...]:
    """Returns the phases of a request, with ranks that have room for the LoRA they start from.

    Args:
        request: what a person asks for.
        trainee: the network.
        examples: what it learns from.
        start: the LoRA it starts from.
        scorers: ids of those whose files are there.
    Raises: TrainingError as presets.phases(), for an optimizer that is not there, and for feedback on a LoRA for exactly one
        step.
    """
    if request.objective == FEEDBACK and start.start_timestep is not None and not start.is_distilled:
        raise TrainingError(
            f"{FEEDBACK} draws with several numbers of steps, and the LoRA in start_from is for exactly one; choose one for "
            "any number of steps, such as Hyper-SD unified, or one for 2, 4 or 8."
        )
    planned = phases(
        request,
        EMBEDDED if trainee.is_embedded else trainee.family,
        examples=_count(examples),
        precision=trainee.precision,
        starts_distilled=start.is_distilled,
        start_steps=start.steps,
        scorers=scorers,
    )
    require_optimizer(planned[0].config, trainee.engine.device)
    ranks = [phase.config.rank for phase in planned]
    if planned[0].config.feedback is not None:  # learnt on top of the LoRA, in a set of its own
        return planned
    if planned[0].config.objective == planned[-1].config.objective:  # a style or a distillation, and one step after that
        ranks = [max(rank, start.rank) for rank in ranks]
    else:  # a distillation after a style holds that style and the LoRA it starts from side by side
        ranks[-1] = ranks[0] + start.rank
    return tuple(phase.changed(rank=rank) for phase, rank in zip(planned, ranks, strict=True))


def job_of(
    request: TrainRequest,
    trainee: Trainee,
    examples: Examples,
    planned: tuple[Phase, ...],
    start: StartingLora,
    *,
    root: Path,
    fingerprints: Mapping[str, str],
    judge: Judge | None = None,
) -> Job:
    """Returns the job, in a folder that any other model, data, starting LoRA or setting would change.

    Args:
        request: whose name the folder's begins with.
        trainee: the network.
        examples: what it learns from.
        planned: the phases.
        start: the LoRA it starts from.
        root: the folder that the job's own is in.
        fingerprints: hashes of "model", "data" and "start".
        judge: of human feedback.
    """
    configs = [{k: v for k, v in to_plain(phase.config).items() if k not in FREE_TO_CHANGE} for phase in planned]
    titled = [{"title": phase.title, **config} for phase, config in zip(planned, configs, strict=True)]
    settings = {**{name: fingerprints[name] for name in ("model", "data", "start")}, "phases": titled}
    if judge and judge.versions:
        settings["scorers"] = judge.versions
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = root / f"{'-'.join(clean_name(request.name))}-{mark}"
    return Job(trainee, examples, planned, start.tensors, folder, start.excluded, settings, judge=judge)


def fitted(job: Job, free_bytes: Callable[[float], float]) -> tuple[Job, int, int]:
    """Returns the job with settings that fit into the memory, the bytes that it takes and those that are free.

    Args:
        job: what will be trained; its network is measured.
        free_bytes: bytes that the training takes -> bytes that are free for it, once other models have made room.
    Raises: TrainingError where not even one image at a time fits.
    """
    trainee, largest = job.trainee, job.phases[-1].config  # what comes later has the rank and the sets from before, and more
    batch = job.examples.largest().to(trainee.engine.device)
    shape, taught = batch.latents.shape, job.taught  # by the network with the style
    measured = estimate(
        trainee.denoiser, largest.rank, largest, shape, batch.conditioning,
        teacher=taught, records=can_record(largest, trainee.engine), judge=job.judge, beneath=rank_of(job.start),
    )  # fmt: skip
    free = free_bytes(measured.needed(largest))
    fitting = tuple(replace(phase, config=fit(measured, free, phase.config)) for phase in job.phases)
    needed = max(measured.needed(phase.config) for phase in fitting)
    return replace(job, phases=fitting, heads=measured.heads), needed, free


def merged(request: TrainRequest, job: Job, outcome: Outcome) -> dict[str, torch.Tensor]:
    """Returns the LoRA that draws by itself, in kohya's names: with human feedback that is the LoRA it was learnt on top of and
    the feedback at the strength that was asked for; in any other training it is what was trained.
    """
    if not outcome.feedback:
        return outcome.tensors
    return concatenated(job.start, outcome.feedback, request.feedback_strength)


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns a hash over the names, shapes and some values of tensors."""
    digest, values = hashlib.sha256(), []
    for name, tensor in tensors.items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        values.append(tensor.detach().reshape(-1)[:: max(tensor.numel() // SAMPLED, 1)].float())
    if len({part.device for part in values}) == 1:
        values = [torch.cat(values)]  # a card hands them over once, and not one by one
    for part in values:
        digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def metadata_of(
    request: TrainRequest, job: Job, rank: int, *, one_step: bool = False, feedback_alone: bool = False
) -> dict[str, str]:
    """Returns what a LoRA's file says of its training, under this project's names and kohya's.

    Args:
        request: what a person asked for.
        job: that made the LoRA.
        rank: of the LoRA.
        one_step: whether it is the LoRA for exactly one step, and not the one for any number of steps.
        feedback_alone: whether it is what human feedback has added, without the LoRA it was learnt on top of.
    """
    led = tuple(phase for phase in job.phases if one_step or phase.title != ONE_STEP)
    last, diffusion, family = led[-1].config, job.trainee.denoiser.diffusion, job.trainee.family
    zero_terminal_snr = bool(diffusion.alpha[-1] < 1e-3)
    return {
        "hyper_sd_base": family,
        "hyper_sd_prediction": diffusion.prediction_type + (", zero terminal SNR" if zero_terminal_snr else ""),
        "hyper_sd_model_hash": job.settings["model"],
        "hyper_sd_data_hash": job.settings["data"],
        "hyper_sd_images": str(_count(job.examples)),
        "hyper_sd_objective": request.objective,
        "hyper_sd_steps": str(sum(phase.config.total_steps for phase in led)),
        "hyper_sd_rank": str(rank),
        "hyper_sd_stages": "none" if feedback_alone else _stages(last),
        "hyper_sd_learning_rate": ", ".join(f"{phase.config.learning_rate:g}" for phase in led),
        "hyper_sd_teacher_cfg": f"{request.teacher_cfg:g}" if last.objective == "tscd" else "none",
        **({"hyper_sd_start_timestep": str(last.start_timestep)} if one_step else {}),
        **_feedback_told(request, last, feedback_alone),
        "hyper_sd_start_from": request.start_from,
        "hyper_sd_seed": str(request.seed),
        "hyper_sd_date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hyper_sd_version": _version(),
        "hyper_sd_settings": json.dumps(job.settings["phases"]),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_base_model_version": FAMILIES[family].kohya_base,
    }


def _stages(config: TrainingConfig) -> str:
    """Returns the numbers of segments that a LoRA was led through, by which its steps are recognised; "none" for a style."""
    if config.feedback is not None:
        return str(config.feedback.num_segments)
    return "-".join(str(stage.num_segments) for stage in config.stages) if config.objective == "tscd" else "none"


def _feedback_told(request: TrainRequest, config: TrainingConfig, alone: bool) -> dict[str, str]:
    if config.feedback is None:
        return {}
    told = {"hyper_sd_rewards": ", ".join(config.feedback.rewards), "hyper_sd_held_out_reward": config.feedback.held_out}
    return told if alone else told | {"hyper_sd_feedback_strength": f"{request.feedback_strength:g}"}


def _count(examples: Examples) -> int:
    return sum(map(len, examples.buckets))


def _version() -> str:
    text = PROJECT.read_text(encoding="utf-8") if PROJECT.is_file() else ""
    match = re.search(r'^version = "(.+?)"', text, re.MULTILINE)
    return match[1] if match else "unknown"
