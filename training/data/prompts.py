"""Prompts without images as training items: the teacher draws their latents, and the cache of encoded images keeps them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import TrainingError
from ..denoiser import Denoiser
from .buckets import Size
from .cache import Clock, Progress, latents_path, load_rows, missing_files, prompt_path, save_rows
from .teacher_latents import draw_latents, prompt_noise


@dataclass(frozen=True)
class Teacher:
    """How the teacher draws.

    Args:
        fingerprint: of its weights; latents of another teacher are not used.
        size: width and height in pixels.
        latent_shape: [channels, height, width].
        steps: of the solver, a divisor of 1000.
        guidance_scale: 1 = off.
        seed: of the noise.
    """

    fingerprint: str
    size: Size
    latent_shape: tuple[int, int, int]
    steps: int = 50
    guidance_scale: float = 7.5
    seed: int = 0


@dataclass(frozen=True)
class PromptItem:
    """An image that is not there yet: the `repeat`-th of its prompt. The cache reads the same names in ImageItem."""

    name: str
    caption: str
    repeat: int
    bucket: Size
    digest: str


def read_prompts(path: Path, teacher: Teacher, per_prompt: int = 1) -> tuple[PromptItem, ...]:
    """Returns the items for every line of a text file that is not blank.

    Args:
        path: of the text file, UTF-8.
        teacher: how the images are drawn.
        per_prompt: images a line.

    Raises: TrainingError when the file cannot be read as UTF-8 text, or has no prompt.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(
            f"The prompts {path} cannot be read ({error}); give a UTF-8 text file, one prompt a line."
        ) from error
    if not lines:
        raise TrainingError(f"{path} holds no prompt; write one a line.")
    seen, items = Counter(), []
    for prompt in lines:
        for _ in range(per_prompt):
            repeat = seen[prompt]
            seen[prompt] += 1
            decides = (teacher.fingerprint, teacher.steps, float(teacher.guidance_scale), teacher.seed, prompt, repeat)
            digest = hashlib.sha256("\0".join(map(str, decides)).encode()).hexdigest()
            items.append(PromptItem(f"{prompt[:40]!r} ({repeat + 1})", prompt, repeat, teacher.size, digest))
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
    """Draws the latents that the cache lacks and yields after every solver step; the prompts are encoded already.

    Args:
        items: of read_prompts.
        teacher: how it draws.
        denoiser: the teacher's network.
        fingerprint: of the encoders.
        folder: of the cache.
        batch_size: images drawn together.
        share: (rank, world), as for cache.encode.
        context: as for draw_latents.
    Raises: TrainingError for prompts that are not encoded, values that are not finite, and a folder that is full.
    """
    device = next(denoiser.network.parameters()).device
    files = {latents_path(folder, fingerprint, item): item for item in items}
    total, missing = missing_files(files, share)
    clock = Clock(total, len(missing))
    yield clock.progress(0)
    for start in range(0, len(missing), batch_size):
        paths, batch = (list(part)[start : start + batch_size] for part in (missing, missing.values()))
        noise = [prompt_noise(teacher.seed, item.caption, item.repeat, teacher.latent_shape) for item in batch]
        conditioning = load_rows([prompt_path(folder, fingerprint, item.caption) for item in batch], device)
        empty = load_rows([prompt_path(folder, fingerprint, "")] * len(batch), device)
        drawing = draw_latents(
            denoiser, torch.cat(noise).to(device), conditioning, empty,
            steps=teacher.steps, guidance_scale=teacher.guidance_scale, context=context,
        )  # fmt: skip
        for done, x in drawing:
            if done == teacher.steps:
                _check(x, batch)
                save_rows(paths, {"latents": x})
            yield clock.progress(start + len(paths) * done / teacher.steps)


def _check(latents: torch.Tensor, batch: Sequence[PromptItem]) -> None:
    if not bool(latents.isfinite().all()):
        raise TrainingError(
            f"The teacher's latents of {batch[0].name} and those drawn with it are not finite; use dtype and precision bf16 or "
            "fp32, or a lower teacher_guidance_scale."
        )
