"""Prompts without images as training items: the teacher draws their latents, and the cache of encoded images keeps them."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import TrainingError
from ..denoiser import Denoiser
from .buckets import Item, Size
from .cache import Clock, Progress, batches, latents_path, load_rows, missing_files, prompt_path, save_rows
from .files import Source
from .remarks import Remark
from .teacher_latents import draw_latents, prompt_noise


@dataclass(frozen=True)
class Teacher:
    """How the teacher draws.

    Args:
        fingerprint: of its weights; latents of another teacher are not used.
        size: width and height of its images in pixels.
        latent_shape: [channels, height, width] of their latents.
        steps: of the solver for each image, a divisor of 1000.
        guidance_scale: of the prompt; 1 is no guidance.
        seed: of the starting noise.
    """

    fingerprint: str
    size: Size
    latent_shape: tuple[int, int, int]
    steps: int = 50
    guidance_scale: float = 7.5
    seed: int = 0


@dataclass(frozen=True)
class PromptItem(Item):
    """An image that the teacher draws.

    Args:
        repeat: which image of its prompt it is, counted from 0.
    """

    repeat: int


def read_prompts(path: Path, teacher: Teacher, per_prompt: int, notes: list[Remark]) -> tuple[PromptItem, ...]:
    """Returns the items for every line of a text file that is not blank.

    Args:
        path: of the text file.
        teacher: how the images are drawn.
        per_prompt: how many images a line gives.
        notes: takes a note where the file's encoding is a guess.
    Raises: TrainingError when the file cannot be read as text, or has no prompt.
    """
    try:
        text = io.StringIO(Source(path).read_text(str(path), notes), newline=None)
        lines = [line.strip() for line in text if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(
            f"The prompts {path} cannot be read ({error}); give a UTF-8 text file, one prompt a line."
        ) from error
    if not lines:
        raise TrainingError(f"{path} holds no prompt; write one a line.")
    repeats, items = Counter(), []
    for prompt in (line for line in lines for _ in range(per_prompt)):
        repeat = repeats[prompt]
        repeats[prompt] += 1
        decisive = (teacher.fingerprint, teacher.steps, float(teacher.guidance_scale), teacher.seed, prompt, repeat)
        digest = hashlib.sha256("\0".join(map(str, decisive)).encode()).hexdigest()
        items.append(PromptItem(f"{prompt[:40]!r} ({repeat + 1})", prompt, teacher.size, digest, repeat))
    return tuple(items)


def draw_items(
    items: Sequence[PromptItem],
    teacher: Teacher,
    denoiser: Denoiser,
    fingerprint: str,
    folder: Path,
    batch_size: int = 8,
    share: tuple[int, int] = (0, 1),
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[Progress]:
    """Draws the latents that the cache lacks and yields after every solver step; encode() has encoded the prompts before.

    Args:
        items: as read_prompts() returned them.
        teacher: how it draws.
        denoiser: the teacher's network.
        fingerprint: of the encoders.
        folder: of the cache.
        batch_size: images drawn together.
        share: (rank, world), as encode() takes it.
        context: as draw_latents() takes it.
    Raises: TrainingError for prompts that are not encoded, values that are not finite, and a folder that is full.
    """
    device = next(denoiser.network.parameters()).device
    files = {latents_path(folder, fingerprint, item): item for item in items}
    total, missing = missing_files(files, share)
    clock, drawn = Clock(total, len(missing)), 0
    yield clock.progress(0)
    for files_of_batch in batches(missing, batch_size):
        batch = list(files_of_batch.values())
        noise = [prompt_noise(teacher.seed, item.caption, item.repeat, teacher.latent_shape) for item in batch]
        conditioning = load_rows([prompt_path(folder, fingerprint, item.caption) for item in batch], device)
        empty = load_rows([prompt_path(folder, fingerprint, "")] * len(batch), device)
        drawing = draw_latents(
            denoiser, torch.cat(noise).to(device), conditioning, empty,
            steps=teacher.steps, guidance_scale=teacher.guidance_scale, context=context,
        )  # fmt: skip
        for steps_done, latents in drawing:
            if steps_done == teacher.steps:
                _require_finite(latents, batch)
                save_rows(files_of_batch, {"latents": latents})
            yield clock.progress(drawn + len(batch) * steps_done / teacher.steps)
        drawn += len(batch)


def _require_finite(latents: torch.Tensor, batch: Sequence[PromptItem]) -> None:
    if not bool(latents.isfinite().all()):
        raise TrainingError(
            f"The teacher's latents of {batch[0].name} and those drawn with it are not finite; use dtype and precision bf16 or "
            "fp32, or a lower teacher_guidance_scale."
        )
