"""The [data] table of a run file as examples: every process encodes its share, then all wait for one another."""

import hashlib
import logging
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from ...errors import TrainingError
from ...models.progress import format_duration
from ..data.buckets import Item
from ..data.cache import CachedExamples, Progress, encode
from ..data.folder import scan_folder
from ..data.images import ImageRules
from ..data.prompts import Teacher, draw_items, read_prompts
from ..data.remarks import Remark, in_words
from ..data.shards import scan_shards
from .diffusers_models import DiffusersModel, fingerprint
from .one_process import OneProcess
from .run_file import DataTable, RunFile

logger = logging.getLogger("hyper_sd")

LOG_SECONDS = 10.0


def make_examples(file: RunFile, model: DiffusersModel, engine: OneProcess) -> CachedExamples:
    """Returns the examples of a run, encoded or drawn where the cache lacks them.

    Afterwards the model's encoders are released and its network lies on the engine's device.

    Args:
        file: the run.
        model: whose encoders and network encode and draw.
        engine: of this process.
    Raises: TrainingError for data that cannot be used, and processes that do not see the same.
    """
    side = model.scale_factor * 8  # UNets halve the latents three times
    resolution = file.resolution(model.resolution)
    if resolution < side:
        raise TrainingError(
            f"data.resolution must be {side} or more for this model, got {resolution}; use {model.resolution}, or leave it out."
        )
    data, share, folder = file.data, (engine.rank, engine.world), Path(file.data.cache)
    if data.prompts:
        teacher = _teacher(file, model, resolution // side * side)
        notes: list[Remark] = []
        items = read_prompts(Path(data.prompts), teacher, data.latents_per_prompt, notes)
        _log("note", notes)
    else:
        items = scan(data, ImageRules(resolution, side, data.max_aspect, default_caption=data.default_caption or None))
    _require_same_everywhere(items, engine)
    encoding = encode(items, model.encoders_on(engine.device), folder, data.encode_batch_size, share)
    _follow("prompts encoded" if data.prompts else "encoded", encoding)
    model.release_encoders(keep_autoencoder=file.is_by_preset)
    model.network.to(engine.device)
    engine.wait()  # a process trains on what others have encoded, and draws for their prompts
    if data.prompts and not file.needs_pictures:
        return CachedExamples(items, folder, model.fingerprint, teacher.latent_shape)
    if data.prompts:
        denoiser = model.denoiser
        context = partial(engine.autocast, denoiser)
        drawing = draw_items(items, teacher, denoiser, model.fingerprint, folder, data.encode_batch_size, share, context)
        _follow("drawn by the teacher", drawing)
        engine.wait()
    return CachedExamples(items, folder, model.fingerprint)


def scan(data: DataTable, rules: ImageRules) -> Sequence[Item]:
    """Returns the images of a folder or of shards, and logs what is not used, or not as it stands.

    Args:
        data: names the folder or the shards.
        rules: which images are taken.
    Raises: TrainingError when nothing usable is there.
    """
    images = scan_folder(data.folder, rules) if data.folder else scan_shards(data.shards, rules)
    logger.info("%d images, %d skipped", len(images.items), len(images.skipped))
    _log("skipped", images.skipped)
    _log("note", images.notes)
    return images.items


def _log(kind: str, remarks: Iterable[Remark]) -> None:
    for sentence in in_words(remarks):
        logger.info("%s: %s", kind, sentence)


def _teacher(file: RunFile, model: DiffusersModel, side: int) -> Teacher:
    """Returns how the model itself draws squares of `side` pixels."""
    data, latent_side = file.data, side // model.scale_factor
    return Teacher(
        fingerprint=fingerprint([model.network]),
        size=(side, side),
        latent_shape=(model.latent_channels, latent_side, latent_side),
        steps=data.teacher_steps,
        guidance_scale=data.teacher_guidance_scale,
        seed=file.training.seed,
    )


def _require_same_everywhere(items: Sequence[Item], engine: OneProcess) -> None:
    """Raises: TrainingError where a machine has other data, which would train on other batches."""
    digest = hashlib.sha256("\0".join(part for item in items for part in (item.digest, item.caption)).encode()).digest()
    if not engine.agree(int.from_bytes(digest[:7], "big")):
        raise TrainingError("The processes do not see the same data; put it where all machines read it, and start again.")


def _follow(what: str, steps: Iterable[Progress]) -> None:
    """Runs through `steps` and logs every LOG_SECONDS and at the end."""
    last, progress = time.monotonic(), None
    for progress in steps:
        if progress.eta_seconds is not None and time.monotonic() - last > LOG_SECONDS:
            last = time.monotonic()
            left = format_duration(progress.eta_seconds)
            logger.info("%d of %d %s, %s left", progress.done, progress.total, what, left)
    if progress is not None:
        logger.info("%d of %d %s in this process", progress.done, progress.total, what)
