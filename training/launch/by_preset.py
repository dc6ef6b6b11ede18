"""A run whose file names an objective and a preset, as the node in ComfyUI does: phases, samples, and one LoRA at the end."""

import logging
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...disk import format_bytes
from ...errors import TrainingError, UnsupportedModelError
from ...models import embedded
from ...models.catalog import load_catalog
from ...models.lora import check_family, read_lora
from ...models.unet_names import lora_names, original_names
from ..data.cache import CachedExamples
from ..export import TrainedLora, numbered, save_trained
from ..loop import CHECKPOINT
from ..lora_layers import LoraLayers, adaptable_layers
from ..lora_tensors import kohya_name
from ..losses import smoothed
from ..phases import Job, Outcome, StepReport, run_job, stage_in_words, write_settings
from ..presets import NONE, UNIFIED, Phase, TrainRequest, phases
from ..preview import Previews
from ..request import StartingLora, fingerprint, fitted, job_of, metadata_of, phases_of
from .accelerate_engine import AccelerateEngine
from .diffusers_models import DiffusersModel
from .run_file import RunFile
from .step_log import StepLog

logger = logging.getLogger("hyper_sd")


def check_preset(request: TrainRequest, model: DiffusersModel) -> None:
    """Refuses what cannot work before hours of encoding.

    Raises: TrainingError as presets.phases(); UnsupportedModelError as starting_lora().
    """
    start = starting_lora(request.start_from, model)
    family = embedded.EMBEDDED if model.is_embedded else model.name
    phases(request, family, examples=sys.maxsize, precision="fp32", starts_distilled=start.is_distilled)


def train_by_preset(file: RunFile, model: DiffusersModel, examples: CachedExamples, engine: AccelerateEngine) -> bool:
    """Trains, saves the LoRA below the output folder, and returns whether the run came to its end.

    Raises: TrainingError as run_job() and phases_of(); UnsupportedModelError for a LoRA to start from that cannot be used.
    """
    request, trainee = file.training, model.trainee(engine, file.precision)
    start = starting_lora(request.start_from, model)
    planned = phases_of(request, trainee, examples, start)
    for phase in planned:
        phase.config.part_size(engine.world)
    fingerprints = {
        "model": fingerprint(model.network.state_dict()),
        "data": examples.fingerprint(),
        "start": fingerprint(start.tensors),
    }
    root = Path(file.output.folder)
    job = job_of(request, trainee, examples, planned, start, root=root, fingerprints=fingerprints)
    _require_same_checkpoints(job, engine)
    if not engine.rank:
        write_settings(job, request.name)
    job = _fitted_to_card(job, engine)
    previews = Previews(job, request.name, request.preview_every, request.teacher_cfg, model.decode)
    outcome = _run(job, previews, engine)
    if not outcome.is_finished:
        logger.info("Stopped; the same command goes on from there.")
        return False
    if not engine.rank:
        _save(request, job, outcome, root)
    return True


def starting_lora(name: str, model: DiffusersModel) -> StartingLora:
    """Returns the LoRA that training starts from.

    Args:
        name: "none", "Hyper-SD unified" for the embedded model's own, or a file's path.
        model: what is trained.
    Raises: UnsupportedModelError for a file that cannot be read, is no plain LoRA, or of another family.
    """
    if name == NONE:
        return StartingLora({})
    if name == UNIFIED and not model.is_embedded:
        entry = next(entry for entry in load_catalog() if (entry.family, entry.kind) == (model.name, "unified"))
        raise UnsupportedModelError(
            f"start_from takes the path of {entry.name} here; get it by `python install.py download {entry.id} --into FOLDER`."
        )
    unified = embedded.lora_file("unified", 1)
    path = unified if name == UNIFIED else Path(name)
    info = read_lora(path)
    if info.kind != "LoRA":
        raise UnsupportedModelError(f"start_from takes plain LoRAs, {path.name} is a {info.kind}; choose another, or none.")
    if not model.is_embedded:
        check_family(info, model.name)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UnsupportedModelError(f"{path} cannot be read ({error}); choose a .safetensors LoRA file.") from error
    released = load_catalog().lora_named(path.name)
    is_distilled = path == unified or (released is not None and released.kind == "unified")
    return _renamed(tensors, path, model, is_distilled)


def _renamed(tensors: dict[str, torch.Tensor], path: Path, model: DiffusersModel, is_distilled: bool) -> StartingLora:
    """Brings a file's tensors, in either naming of the network's modules, to the names that the trained LoRA has."""
    rename = lora_names(model.network)
    namings = [rename, str, *([original_names(model.network)] if model.is_unet else [])]
    split = {key: key.partition(".") for key in tensors}
    changed = {module for module, _, _ in split.values()}
    for naming in namings:
        known = {kohya_name(naming(module)): module for module in adaptable_layers(model.network, ())}
        if changed <= known.keys():
            own = {module: kohya_name(rename(known[module])) for module in changed}
            renamed = {f"{own[module]}.{part}": tensors[key] for key, (module, _, part) in split.items()}
            return StartingLora(renamed, is_distilled, frozenset(known[module] for module in changed))
    raise UnsupportedModelError(
        f"{path.name} changes modules that this model has not; choose a LoRA in kohya's names that was made for {model.name}."
    )


def _require_same_checkpoints(job: Job, engine: AccelerateEngine) -> None:
    paths = (job.phase_folder(number) / CHECKPOINT for number in range(len(job.phases)))
    if not engine.agree(sum(path.stat().st_size for path in paths if path.exists())):
        raise TrainingError(
            f"Not every machine sees the same checkpoints in {job.folder}; choose an output.folder that all of them share."
        )


def _fitted_to_card(job: Job, engine: AccelerateEngine) -> Job:
    """Returns the job with what a graphics card's memory asks for; several processes are not measured, nor is a processor."""
    if engine.device.type != "cuda" or engine.world > 1:
        return job
    job, needed, free = fitted(job, lambda needed: torch.cuda.mem_get_info(engine.device)[0])
    logger.info("The training takes about %s of %s free memory.", format_bytes(needed), format_bytes(free))
    return job


def _run(job: Job, previews: Previews, engine: AccelerateEngine) -> Outcome:
    """Trains; the first process logs, and draws the samples."""
    log = StepLog()

    def on_step(report: StepReport) -> None:
        if engine.rank:
            return
        log.write(report.state, f"{stage_in_words(report.phase, report.state.stage)},")
        if previews.due(report.steps_done):
            previews.draw_sheet(report.phase, report.layers, report.state.stage, report.steps_done)

    def at_end(phase: Phase, layers: LoraLayers) -> None:
        if not engine.rank:
            previews.last_sheet(phase, layers)

    return run_job(job, on_step, at_end, stop=lambda: engine.stopping)


def _save(request: TrainRequest, job: Job, outcome: Outcome, root: Path) -> None:
    """Writes the LoRA under the next free number, unless an earlier call of the same run has done so."""
    tensors = {name: tensor.to(torch.float16) for name, tensor in outcome.tensors.items()}
    path = next((path for path in numbered(root, request.name).values() if _holds(path, tensors)), None)
    if path is None:
        path = save_trained(root, request.name, TrainedLora(tensors, metadata_of(request, job, outcome.rank)))
    what = f"{job.total_steps} steps, loss {smoothed(outcome.losses):.4g}, rank {outcome.rank}"
    logger.info("Finished: %s; the LoRA is %s, samples are in %s", what, path, job.folder)


def _holds(path: Path, tensors: dict[str, torch.Tensor]) -> bool:
    try:
        saved = load_file(path)
    except (OSError, SafetensorError):
        return False
    return saved.keys() == tensors.keys() and all(torch.equal(saved[name], tensors[name]) for name in tensors)
