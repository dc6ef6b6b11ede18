"""A run whose file names an objective and a preset, as the node in ComfyUI does: phases, samples, and the LoRAs at the end."""

import logging
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch

from ...disk import format_bytes
from ...errors import UnsupportedModelError
from ...models import embedded
from ...models.catalog import load_catalog
from ...models.lora import check_family, load_lora_file
from ...models.lora_keys import is_text_encoder
from ...models.recognition import Recognition, recognise
from ...models.tensor_file import load_tensors
from ...models.unet_names import lora_names, original_names
from ..data.cache import CachedExamples
from ..export import TrainedLora, clean_name, numbered, save_trained
from ..feedback.make import make_judge, ready_scorers
from ..job import Job
from ..lora_layers import LoraLayers, adaptable_layers
from ..lora_tensors import kohya_name, rank_of, set_from_tensors
from ..losses import smoothed
from ..optimizers import require_optimizer
from ..phases import Outcome, StepReport, run_job, stage_in_words, write_settings
from ..presets import Phase, TrainRequest, phases
from ..preview import Previews
from ..request import StartingLora, fingerprint, fitted, job_of, merged, metadata_of, phases_of
from ..run import CHECKPOINT
from ..words import NONE, UNIFIED
from .diffusers_models import DiffusersModel
from .one_process import OneProcess
from .run_file import FEEDBACK_ENDING, ONE_STEP_ENDING, RunFile
from .step_log import StepLog

logger = logging.getLogger("hyper_sd")


def check(request: TrainRequest, model: DiffusersModel, engine: OneProcess) -> None:
    """Refuses what cannot work, before hours of encoding.

    Raises: TrainingError as presets.phases(), for a batch_size that the processes cannot share, an optimizer that is not
        there, and a LoRA to start from whose sizes are not the model's; UnsupportedModelError as starting_lora().
    """
    start = starting_lora(request.start_from, model)
    family = embedded.EMBEDDED if model.is_embedded else model.name
    known = {"starts_distilled": start.is_distilled, "start_steps": start.steps}
    planned = phases(request, family, examples=sys.maxsize, **known)
    require_optimizer(planned[0].config, engine.device)
    if request.batch_size:  # otherwise the number of examples is needed to know the batch
        planned[0].config.part_size(engine.world)
    if start.tensors:
        layers = LoraLayers(model.network, start.rank, excluded=start.excluded)
        try:
            set_from_tensors(start.tensors, layers, rename=lora_names(model.network), source=request.start_from, partial=True)
        finally:
            layers.detach()


def train(file: RunFile, model: DiffusersModel, examples: CachedExamples, engine: OneProcess) -> bool:
    """Trains, saves the LoRAs below the output folder, and returns whether the run came to its end.

    The LoRA has the run's name; one for exactly one step, where the run makes it, has "-one-step" after that.

    Args:
        file: the run.
        model: what is trained.
        examples: what it learns from.
        engine: of this process.
    Raises: TrainingError as run_job() and phases_of(); UnsupportedModelError as starting_lora().
    """
    request, trainee = file.training, model.trainee(engine, file.precision)
    start = starting_lora(request.start_from, model)
    folders = [Path(file.model.scorers)] if file.model.scorers else []
    planned = phases_of(request, trainee, examples, start, ready_scorers(folders))
    config = planned[0].config
    config.part_size(engine.world)  # all phases have the same batch
    judge = None
    if config.feedback is not None:
        to = {"folders": folders, "device": engine.device, "is_embedded": model.is_embedded}
        judge = make_judge(config.feedback, model.pixels, model.pipeline.vae, **to)
    fingerprints = {
        "model": fingerprint(model.network.state_dict()),
        "data": examples.fingerprint(),
        "start": fingerprint(start.tensors),
    }
    root = Path(file.output.folder)
    job = job_of(request, trainee, examples, planned, start, root=root, fingerprints=fingerprints, judge=judge)
    checkpoints = [job.phase_folder(number) / CHECKPOINT for number in range(len(job.phases))]
    engine.require_shared(checkpoints, f"checkpoints in {job.folder}")
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


@lru_cache(maxsize=1)  # it is checked before the images are encoded, and used after that
def starting_lora(name: str, model: DiffusersModel) -> StartingLora:
    """Returns the LoRA that training starts from, without its modules of text encoders.

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
    path = embedded.lora_file("unified", 1) if name == UNIFIED else Path(name)
    info, tensors = load_lora_file(path)
    if info.kind != "LoRA":
        raise UnsupportedModelError(f"start_from takes plain LoRAs, {path.name} is a {info.kind}; choose another, or none.")
    if not model.is_embedded:
        check_family(info, model.name)
    if info.text_encoder_modules:
        logger.warning("%s also changes a text encoder; training starts from the rest.", path.name)
    tensors = {key: tensor for key, tensor in tensors.items() if not is_text_encoder(key)}
    return _renamed(tensors, path, model, recognise(path))


def _renamed(tensors: dict[str, torch.Tensor], path: Path, model: DiffusersModel, known: Recognition) -> StartingLora:
    """Brings a file's tensors, named after diffusers' or the original modules, to the names that the trained LoRA has."""
    rename = lora_names(model.network)
    split = {key: key.partition(".") for key in tensors}
    changed = {module for module, _, _ in split.values()}
    for naming in (rename, str, *([original_names(model.network)] if model.is_unet else [])):
        own = {kohya_name(naming(module)): module for module in adaptable_layers(model.network, ())}
        if changed and changed <= own.keys():
            renamed = {f"{kohya_name(rename(own[module]))}.{part}": tensors[key] for key, (module, _, part) in split.items()}
            modules = frozenset(own[module] for module in changed)
            is_unified = known.variant == "unified"
            return StartingLora(renamed, is_unified, modules, known.steps or 1, known.start_timestep)
    raise UnsupportedModelError(
        f"{path.name} changes modules that this model has not; choose a LoRA in kohya's names that was made for {model.name}."
    )


def _fitted_to_card(job: Job, engine: OneProcess) -> Job:
    """Returns the job with settings that fit into a graphics card's memory; several processes, or a CPU, are not measured."""
    if engine.device.type != "cuda" or engine.world > 1:
        return job
    job, needed, free = fitted(job, lambda needed: torch.cuda.mem_get_info(engine.device)[0])
    logger.info("The training takes about %s of %s free memory.", format_bytes(needed), format_bytes(free))
    return job


def _run(job: Job, previews: Previews, engine: OneProcess) -> Outcome:
    """Trains; the first process logs and draws the samples."""
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
    """Writes the LoRAs, each under the next free number, unless an earlier call of the same run has done so."""
    lora = merged(request, job, outcome)
    path = _saved(root, request.name, lora, metadata_of(request, job, rank_of(lora)))
    what = f"{len(outcome.losses)} steps, loss {smoothed(outcome.losses):.4g}, rank {outcome.rank}"
    logger.info("Finished: %s; the LoRA is %s, samples are in %s", what, path, job.folder)
    if outcome.feedback:
        metadata = metadata_of(request, job, outcome.rank, feedback_alone=True)
        path = _saved(root, f"{request.name}{FEEDBACK_ENDING}", outcome.feedback, metadata)
        logger.info("What the feedback has added, for use beside the LoRA in start_from at any strength, is %s", path)
    if outcome.one_step:
        metadata = metadata_of(request, job, outcome.rank, one_step=True)
        path = _saved(root, f"{request.name}{ONE_STEP_ENDING}", outcome.one_step, metadata)
        logger.info("The LoRA for exactly one step, from timestep %s, is %s", metadata["hyper_sd_start_timestep"], path)


def _saved(root: Path, name: str, lora: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Returns the file of a LoRA, which it writes where no earlier call of the same run has done so."""
    tensors = {key: tensor.to(torch.float16) for key, tensor in lora.items()}
    path = next((path for path in numbered(root, clean_name(name)[-1]).values() if _holds(path, tensors)), None)
    return path or save_trained(root, name, TrainedLora(tensors, metadata))


def _holds(path: Path, tensors: dict[str, torch.Tensor]) -> bool:
    try:
        saved, _ = load_tensors(path)
    except (OSError, UnsupportedModelError):
        return False
    return saved.keys() == tensors.keys() and all(torch.equal(saved[name], tensors[name]) for name in tensors)
