"""Where training data comes from: a folder, encoded once and kept on disk, an IMAGE batch, or latents from elsewhere."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import torch

from ...errors import TrainingError
from ...models import embedded
from ...models.families import FAMILIES
from ...training.data.buckets import Size, nearest_bucket
from ...training.data.cache import encode, latents_path, prompt_path
from ...training.data.folder import folder_state, scan_folder
from ...training.data.images import ImageRules
from ...training.data.remarks import Remark, in_words
from ...training.data.sealed import load_sealed
from ..demo_model import DemoTextEncoder
from .encoders import conditioning_entry, encode_prompt, host_encoders

PACK = Path(__file__).resolve().parents[2]
SMALLEST = 64  # pixels of a side
FACTOR = 8  # pixels to a latent in all families that are trained
SMALL = 256  # resolutions below take finer buckets where the VAE allows it

Report = Callable[[str, int, int, float | None], None]  # what is done, done, total, seconds left


@dataclass(frozen=True)
class Example:
    """One image with its caption.

    Args:
        latents: [1, ...] as VAEEncode gives them.
        positive: the caption's entry of CONDITIONING.
    """

    latents: torch.Tensor
    positive: list


@dataclass(frozen=True)
class Encoded:
    """What a folder or an IMAGE batch gives.

    Args:
        examples: in order.
        skipped: what could not be used, and why.
        notes: what else a person is to know.
        negative: the entry of CONDITIONING of the empty prompt.
    """

    examples: tuple[Example, ...]
    skipped: tuple[Remark, ...]
    notes: tuple[Remark, ...]
    negative: list


def folder_path(folder: str) -> Path | None:
    """Returns the folder a person means; None for an empty text.

    A relative path lies below the host's input folder, or else below this pack, which has demo/style.
    """
    folder = folder.strip().strip('"').strip()  # Windows copies a path with quotes around it
    if not folder:
        return None
    in_pack, in_input = PACK / folder, Path(folder_paths.get_input_directory(), Path(folder).expanduser())
    return in_pack if in_pack.is_dir() and not in_input.is_dir() else in_input


def cache_folder() -> Path:
    """Returns where encoded images and prompts are kept; a person may delete it at any time."""
    return Path(folder_paths.get_user_directory(), "hyper_sd", "training_cache")


def drawn_at(clip: Any) -> int:
    """Returns the side in pixels of the squares that a CLIP's model draws, which its text encoders show."""
    encoders = clip.cond_stage_model
    if isinstance(getattr(encoders, "clip_l", None), DemoTextEncoder):
        return embedded.SIZE
    return FAMILIES["sdxl" if hasattr(encoders, "clip_g") else "sd15"].size


def image_rules(clip: Any, vae: Any, resolution: int, default_caption: str) -> ImageRules:
    """Returns which images are taken and to what sizes: sides are multiples of 64, or of 8 latents at small resolutions.

    Args:
        clip: of the model.
        vae: of the model.
        resolution: in pixels, 0 for what the model draws.
        default_caption: of images that have none; empty for none.
    Raises: TrainingError for a resolution in 1..63.
    """
    if 0 < resolution < SMALLEST:
        raise TrainingError(f"resolution must be at least {SMALLEST} pixels, got {resolution}; use 0 for the model's own.")
    resolution, factor = resolution or drawn_at(clip), vae.spacial_compression_encode()
    step = min(8 * factor, 64) if resolution < SMALL else 64
    return ImageRules(resolution, max(step, factor), default_caption=default_caption.strip() or None)


def from_folder(folder: Path, clip: Any, vae: Any, rules: ImageRules, report: Report) -> Encoded:
    """Returns a folder's images, encoded now or before.

    Raises: TrainingError when the folder holds nothing usable or the cache cannot be written.
    """
    encoders, cache = host_encoders(clip, vae), cache_folder()
    images = scan_folder(folder, rules, lambda done, total: report("Looking at images", done, total, None))
    for state in encode(images.items, encoders, cache, batch_size=1):
        report("Encoding", state.done, state.total, state.eta_seconds)
    texts = dict.fromkeys(["", *(item.caption for item in images.items)])
    entries = {text: conditioning_entry(load_sealed(prompt_path(cache, encoders.fingerprint, text)), text) for text in texts}
    examples = tuple(
        Example(load_sealed(latents_path(cache, encoders.fingerprint, item))["latents"], entries[item.caption])
        for item in images.items
    )
    return Encoded(examples, images.skipped, images.notes, entries[""])


def caption_lines(captions: str, count: int, rules: ImageRules) -> list[str | None]:
    """Returns one caption for each of `count` images, None where there is none.

    Raises: TrainingError when the lines are neither one nor as many as the images.
    """
    lines = [line.strip() for line in captions.rstrip().splitlines()] or [""]
    if len(lines) not in {1, count}:
        raise TrainingError(
            f"captions has {len(lines)} lines, images has {count}; write one line for each image, in order, or one for all."
        )
    return [line or rules.default_caption for line in (lines * count if len(lines) == 1 else lines)]


def from_images(images: torch.Tensor, captions: str, clip: Any, vae: Any, rules: ImageRules, report: Report) -> Encoded:
    """Returns an IMAGE batch [batch, height, width, 3], brought to the nearest size as those of a folder are.

    Raises: TrainingError for captions that do not fit, and for images that are too small or have no caption.
    """
    count, height, width = images.shape[:3]
    if min(width, height) < rules.smallest:
        raise TrainingError(
            f"The images are {width}x{height}, their shorter side less than {rules.smallest} pixels; set resolution to "
            f"{min(width, height)} or lower, or use larger images."
        )
    lines = caption_lines(captions, count, rules)
    reason = "has no caption; write its line, or set default_caption"
    skipped = tuple(Remark(f"image {n}", reason) for n, line in enumerate(lines, 1) if line is None)
    if len(skipped) == count:
        raise TrainingError("The images have no caption; write one line for each in captions, or set default_caption.")
    entries = {text: conditioning_entry(encode_prompt(clip, text), text) for text in dict.fromkeys(["", *filter(None, lines)])}
    pixels, examples = _fitted(images[..., :3], nearest_bucket((width, height), rules.buckets)), []
    for number, (image, line) in enumerate(zip(pixels.split(1), lines, strict=True)):
        report("Encoding", number, count, None)
        if line is not None:
            examples.append(Example(vae.encode(image), entries[line]))
    return Encoded(tuple(examples), skipped, (), entries[""])


def from_prompts(prompts: str, clip: Any, resolution: int, report: Report) -> Encoded:
    """Returns prompts without pictures, each with empty latents of the square that is drawn for it.

    Raises: TrainingError for a resolution in 1..63.
    """
    if 0 < resolution < SMALLEST:
        raise TrainingError(f"resolution must be at least {SMALLEST} pixels, got {resolution}; use 0 for the model's own.")
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    texts, entries = list(dict.fromkeys(["", *lines])), {}
    for number, text in enumerate(texts):
        report("Encoding", number, len(texts), None)
        entries[text] = conditioning_entry(encode_prompt(clip, text), text)
    side = (resolution or drawn_at(clip)) // FACTOR
    blank = torch.zeros(1, FAMILIES["sd15"].latent_channels, side, side)
    return Encoded(tuple(Example(blank, entries[line]) for line in lines), (), (), entries[""])


def _fitted(images: torch.Tensor, size: Size) -> torch.Tensor:
    width, height = size
    if images.shape[1:3] == (height, width):
        return images
    return comfy.utils.common_upscale(images.movedim(-1, 1), width, height, "lanczos", "center").movedim(1, -1)


def passed_through(latents: dict | None, positive: list | None) -> tuple[dict, list] | None:
    """Returns latents and conditioning that were encoded elsewhere, one entry for each latent; None where both are missing.

    Raises: TrainingError when one of them is missing, or the counts differ.
    """
    if latents is None and positive is None:
        return None
    if latents is None or positive is None:
        wired, missing = ("latents", "positive") if positive is None else ("positive", "latents")
        raise TrainingError(f"{wired} is wired in and {missing} is not; wire both, they belong together.")
    count = len(latents["samples"])
    if len(positive) not in {1, count}:
        raise TrainingError(
            f"positive has {len(positive)} entries for {count} latents; give one for each, in order, or one for all."
        )
    return latents, positive if len(positive) == count else positive * count


def grouped(examples: Iterable[Example]) -> tuple[list[dict], list[list]]:
    """Returns LATENTs and CONDITIONINGs, one pair for each size, in the order in which the sizes came first."""
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(tuple(example.latents.shape), []).append(example)
    latents = [{"samples": torch.cat([example.latents for example in group])} for group in groups.values()]
    return latents, [[example.positive for example in group] for group in groups.values()]


def summary(
    examples: Sequence[Example],
    factor: int,
    skipped: Sequence[Remark],
    notes: Sequence[Remark] = (),
    others: int = 0,
    noun: str = "image",
) -> str:
    """Returns a summary: "20 images in 2 sizes (14 of 512x512, 6 of 384x640), 1 skipped: x.png has no caption".

    Args:
        examples: images that were encoded.
        factor: pixels to a latent.
        skipped: images that were not.
        notes: what else a person is to know.
        others: latents that were encoded elsewhere.
        noun: what the examples are.
    """
    sizes = Counter(f"{e.latents.shape[-1] * factor}x{e.latents.shape[-2] * factor}" for e in examples).most_common()
    parts = []
    if examples:
        noun = noun if len(examples) == 1 else f"{noun}s"
        each = ", ".join(f"{count} of {size}" for size, count in sizes)
        of_sizes = f"of {sizes[0][0]}" if len(sizes) == 1 else f"in {len(sizes)} sizes ({each})"
        parts.append(f"{len(examples)} {noun} {of_sizes}")
    if others:
        parts.append(f"{others} {'latent' if others == 1 else 'latents'} as given")
    if skipped:
        parts.append(f"{len(skipped)} skipped: {'; '.join(in_words(skipped))}")
    text = ", ".join(parts)
    return f"{text}. Note: {'; '.join(in_words(notes))}" if notes else text


def fingerprint(folder: Path) -> str:
    """Returns a hash that changes where folder_state() does."""
    digest = hashlib.sha256()
    for state in folder_state(folder):
        digest.update(f"{state}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
