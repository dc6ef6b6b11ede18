"""From a node's inputs to a job: which phases, started from which LoRA, kept in which folder, and what its file says of it."""

import fnmatch
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch

from ...errors import TrainingError, UnsupportedModelError
from ...models.catalog import load_catalog
from ...models.lora import plan
from ...models.lora_keys import split_key
from ...training.config import FREE_TO_CHANGE, to_plain
from ...training.data.examples import GroupedExamples
from ...training.export import kohya_name
from ...training.lora_layers import EXCLUDED
from ...training.memory import estimate, fit
from ...training.phases import Job
from ...training.presets import AUTO, Phase, phases
from .. import demo_model
from ..lora import planned_file
from ..lora_files import DEMO, lora_path, read_file, require_fit
from ..schema import require_choice
from .network import HostNetwork, fingerprint
from .save_lora import clean_name

logger = logging.getLogger("hyper_sd")
NONE, ON, OFF, UNIFIED = "none", "on", "off", "Hyper-SD unified"
FOLDER = "hyper_sd_training"
PARTS = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
BASES = {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0"}  # as kohya's trainer calls them
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@dataclass(frozen=True)
class Wishes:
    """What the node was asked for; see its inputs."""

    objective: str
    preset: str
    steps: int
    rank: int
    learning_rate: float
    name: str
    start_from: str
    stages: str
    batch_size: int
    teacher_cfg: float
    seed: int
    gradient_checkpointing: str
    adversarial: str


@dataclass(frozen=True)
class Start:
    """The LoRA that training starts from.

    Args:
        tensors: under the names of the trained one's; none for no LoRA.
        is_distilled: works at 1 to 8 steps already.
        excluded: patterns of layers that are left alone, but those the LoRA changes.
    """

    tensors: Mapping[str, torch.Tensor]
    rank: int = 0
    is_distilled: bool = False
    excluded: tuple[str, ...] = EXCLUDED


def start_of(host: HostNetwork, model: Any, name: str) -> Start:
    """Returns the LoRA of a name that the node offers.

    Raises: UnsupportedModelError for a file that is missing, of another family, or no plain LoRA.
    """
    if name == NONE:
        return Start({})
    path = planned_file(model, plan(host.family, 1, "unified")) if name == UNIFIED else lora_path(name)
    info, tensors = read_file(path, model)
    if info.kind != "LoRA":
        raise UnsupportedModelError(f"start_from takes plain LoRAs, {path.name} is a {info.kind}; choose another, or none.")
    offered, found = require_fit(model, path, tensors)
    if found.dropped:
        logger.warning("%s: %s; training starts from the rest.", path.name, found)
    own, rename, renamed, changed = host.host_names(), host.lora_name(), {}, set()
    for key, tensor in tensors.items():
        split = split_key(key)
        if split is None or split.module not in offered:
            continue
        if split.part not in PARTS:
            raise UnsupportedModelError(f"start_from takes plain LoRAs, {path.name} has {key}; choose another file, or none.")
        changed.add(own[split.module])
        renamed[f"{kohya_name(rename(own[split.module]))}.{PARTS[split.part]}"] = tensor
    rank = max(len(tensor) for key, tensor in renamed.items() if key.endswith(PARTS["down"]))
    excluded = tuple(pattern for pattern in EXCLUDED if not fnmatch.filter(changed, pattern))
    return Start(renamed, rank, name == UNIFIED or _is_unified(name), excluded)


def _is_unified(name: str) -> bool:
    released = any(entry.name == Path(name).name and entry.kind == "unified" for entry in load_catalog())
    return released or (name.startswith(DEMO) and "unified" in name)


def phases_of(wishes: Wishes, host: HostNetwork, model: Any, examples: GroupedExamples, start: Start) -> tuple[Phase, ...]:
    """Returns the phases of a wish, with ranks that hold what they start from.

    Raises: TrainingError as training.presets.phases(), and where the negative prompt is missing; HyperSDError for a value that
        a list does not offer.
    """
    require_choice("gradient_checkpointing", wishes.gradient_checkpointing, (AUTO, ON))
    require_choice("adversarial", wishes.adversarial, (AUTO, ON, OFF))
    made = phases(
        wishes.objective,
        "embedded" if model.get_attachment(demo_model.ATTACHMENT) else host.family,
        preset=wishes.preset,
        examples=sum(map(len, examples.buckets)),
        steps=wishes.steps,
        rank=wishes.rank,
        learning_rate=wishes.learning_rate,
        stages=wishes.stages,
        batch_size=wishes.batch_size,
        guidance_scale=wishes.teacher_cfg,
        seed=wishes.seed,
        precision=host.precision,
        starts_distilled=start.is_distilled,
        adversarial=None if wishes.adversarial == AUTO else wishes.adversarial == ON,
    )
    if not examples.groups[0].empty and any(phase.config.is_guided for phase in made):
        raise TrainingError(
            f"{wishes.objective} guides its teacher with CFG {wishes.teacher_cfg:g} and needs the empty prompt: wire the "
            "negative output of Hyper-SD Training Data into negative, or set teacher_cfg to 1."
        )
    made = tuple(_changed(phase, gradient_checkpointing=wishes.gradient_checkpointing == ON) for phase in made)
    if len(made) == 1:
        return (_changed(made[0], rank=max(made[0].config.rank, start.rank)),)
    return made[0], _changed(made[1], rank=made[0].config.rank + start.rank)


def _changed(phase: Phase, **settings: Any) -> Phase:
    return replace(phase, config=replace(phase.config, **settings))


def job_of(
    name: str, host: HostNetwork, examples: GroupedExamples, made: tuple[Phase, ...], start: Start
) -> tuple[Job, dict[str, Any]]:
    """Returns the job, in a folder that any other model, data or setting would change, and what decides that folder."""
    settings = [{k: v for k, v in to_plain(phase.config).items() if k not in FREE_TO_CHANGE} for phase in made]
    decides = {
        "model": host.fingerprint(),
        "data": examples.fingerprint(),
        "start": fingerprint(start.tensors),
        "phases": [{"title": phase.title, **config} for phase, config in zip(made, settings, strict=True)],
    }
    mark = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
    folder = Path(folder_paths.get_output_directory()) / FOLDER / f"{'-'.join(clean_name(name))}-{mark}"
    return Job(host, examples, made, start.tensors, folder, start.excluded), decides


def fitted(job: Job) -> tuple[Job, int, int]:
    """Returns the job with what its memory asks for, and the bytes it takes and that are free; measured on the network.

    Raises: TrainingError where not even one image at a time fits.
    """
    host, largest = job.host, job.phases[-1].config  # a distillation after a style has its rank and more
    numbers, group = max(zip(job.examples.buckets, job.examples.groups, strict=True), key=lambda p: p[1].latents[0].numel())
    batch = job.examples.batch(numbers[:1], 0).to(host.device)
    taught = len(job.phases) > 1  # by the network with the style
    found = estimate(host.denoiser, largest.rank, largest, group.latents.shape, batch.conditioning, teacher=taught)
    host.load(found.needed(largest))  # other models make room
    free = comfy.model_management.get_free_memory(host.device)
    made = tuple(replace(phase, config=fit(found, free, phase.config)) for phase in job.phases)
    return replace(job, phases=made, heads=found.heads), max(found.needed(phase.config) for phase in made), free


def metadata_of(wishes: Wishes, job: Job, decides: Mapping[str, Any], rank: int) -> dict[str, str]:
    """Returns what the LoRA's file is to say of its training, kohya's names included."""
    last, options = job.phases[-1].config, {"zsnr": bool(job.host.diffusion.alpha[-1] < 1e-3)}
    return {
        "hyper_sd_base": job.host.family,
        "hyper_sd_prediction": job.host.diffusion.prediction_type + (", zero terminal SNR" if options["zsnr"] else ""),
        "hyper_sd_model_hash": decides["model"],
        "hyper_sd_data_hash": decides["data"],
        "hyper_sd_images": str(sum(map(len, job.examples.buckets))),
        "hyper_sd_objective": wishes.objective,
        "hyper_sd_steps": str(job.total_steps),
        "hyper_sd_rank": str(rank),
        "hyper_sd_stages": "-".join(str(stage.num_segments) for stage in last.stages) if last.objective == "tscd" else "none",
        "hyper_sd_learning_rate": ", ".join(f"{phase.config.learning_rate:g}" for phase in job.phases),
        "hyper_sd_teacher_cfg": f"{wishes.teacher_cfg:g}" if last.objective == "tscd" else "none",
        "hyper_sd_start_from": wishes.start_from,
        "hyper_sd_seed": str(wishes.seed),
        "hyper_sd_date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hyper_sd_version": _version(),
        "hyper_sd_settings": json.dumps(decides["phases"]),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_base_model_version": BASES[job.host.family],
    }


def _version() -> str:
    found = re.search(r'^version = "(.+?)"', PROJECT.read_text(encoding="utf-8"), re.MULTILINE) if PROJECT.is_file() else None
    return found[1] if found else "unknown"
