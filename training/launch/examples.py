"""The [data] table of a run file as examples: every process encodes its share, then all wait for one another."""

import hashlib
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import TrainingError
from ...models.progress import format_duration
from ..data.cache import CachedExamples, Progress, encode, encode_prompts
from ..data.images import ImageItem, ImageRules, ImageSet, scan_folder
from ..data.prompts import PromptItem, Teacher, draw_items, read_prompts
from ..data.shards import scan_shards
from .accelerate_engine import AccelerateEngine
from .diffusers_models import DiffusersModel, fingerprint
from .run_file import DataTable, RunFile

logger = logging.getLogger("hyper_sd")

LOG_SECONDS, SHOWN = 10.0, 5


def make_examples(file: RunFile, model: DiffusersModel, engine: AccelerateEngine) -> CachedExamples:
    """Returns the examples of a run, encoded or drawn where the cache lacks them; the model's encoders are released.

    Raises: TrainingError for data that cannot be used, and processes that do not see the same.
    """
    size = model.scale_factor * 8  # UNets halve the latents three times
    resolution = file.resolution(model.resolution)
    if resolution < size:
        raise TrainingError(
            f"data.resolution must be {size} or more for this model, got {resolution}; use {model.resolution}, or leave it out."
        )
    share, folder = (engine.rank, engine.world), Path(file.data.cache)
    if file.data.prompts:
        items = _from_prompts(file, model, engine, share, resolution // size * size)
    else:
        rules = ImageRules(resolution, size, file.data.max_aspect, default_caption=file.data.default_caption or None)
        items = _scan(file.data, rules).items
        _same_everywhere(items, engine)
        encoders = model.encoders_on(engine.device)
        _follow("encoded", encode(items, encoders, folder, file.data.encode_batch_size, share))
        model.release_encoders(keep_autoencoder=file.shows_samples)
        model.network.to(engine.device)
    engine.wait()
    return CachedExamples(items, folder, model.fingerprint)


def _scan(data: DataTable, rules: ImageRules) -> ImageSet:
    found = scan_folder(data.folder, rules) if data.folder else scan_shards(data.shards, rules)
    logger.info("%d images, %d skipped", len(found.items), len(found.skipped))
    for skipped in found.skipped[:SHOWN]:
        logger.info("skipped %s: %s", skipped.name, skipped.reason)
    return found


def _from_prompts(
    file: RunFile, model: DiffusersModel, engine: AccelerateEngine, share: tuple[int, int], side: int
) -> Sequence[PromptItem]:
    data, folder = file.data, Path(file.data.cache)
    shape = (model.latent_channels, side // model.scale_factor, side // model.scale_factor)
    name = fingerprint([model.network])
    teacher = Teacher(name, (side, side), shape, data.teacher_steps, data.teacher_guidance_scale, file.training.seed)
    items = read_prompts(Path(data.prompts), teacher, data.latents_per_prompt)
    _same_everywhere(items, engine)
    encoders = model.encoders_on(engine.device)
    _follow("prompts encoded", encode_prompts(items, encoders, folder, data.encode_batch_size, share))
    model.release_encoders(keep_autoencoder=file.shows_samples)
    model.network.to(engine.device)
    engine.wait()  # a process draws for prompts that another has encoded
    drawing = draw_items(
        items, teacher, model.denoiser, model.fingerprint, folder, data.encode_batch_size, share, engine.autocast
    )
    _follow("drawn by the teacher", drawing)
    return items


def _same_everywhere(items: Sequence[ImageItem | PromptItem], engine: AccelerateEngine) -> None:
    """Raises: TrainingError where a machine has other data, which would train on other batches."""
    digest = hashlib.sha256("\0".join(part for item in items for part in (item.digest, item.caption)).encode()).digest()
    if not engine.agree(int.from_bytes(digest[:7], "big")):
        raise TrainingError("The processes do not see the same data; put it where all machines read it, and start again.")


def _follow(what: str, steps: Iterable[Progress]) -> None:
    """Runs through `steps` and logs now and then."""
    last, progress = time.monotonic(), None
    for progress in steps:
        if progress.eta_seconds is not None and time.monotonic() - last > LOG_SECONDS:
            last = time.monotonic()
            left = format_duration(progress.eta_seconds)
            logger.info("%d of %d %s, %s left", progress.done, progress.total, what, left)
    if progress is not None:
        logger.info("%d of %d %s in this process", progress.done, progress.total, what)
