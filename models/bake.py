"""A LoRA baked into a checkpoint: W + strength * lora_alpha / rank * up @ down, for every weight that it changes."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .bake_plan import Change, plan_bake
from .casting import NAMES, require_finite, stored_in
from .catalog import Catalog
from .files import BLOCK
from .inside import FEW_STEP, few_step_note
from .lora_fit import Match
from .new_file import READING, BuildError, Piece, Report, as_dtype, bytes_of, new_file, write_pieces
from .one_step import start_note
from .recognition import Recognition, recognise
from .tensor_file import TensorFile, open_tensors

BEFORE = "hyper_sd.before"  # in the metadata: what the base's said of an earlier build, where there was one
UNTRUE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")  # hashes of tensors that change


@dataclass(frozen=True)
class Baked:
    """A checkpoint that a LoRA was baked into.

    Args:
        path: of the new file.
        match: how much of the LoRA is in it.
        note: sentences on the LoRA's scale, and on the few steps that are inside now; often empty.
    """

    path: Path
    match: Match
    note: str = ""


def bake(
    base: Path,
    lora: Path,
    target: Path,
    *,
    strength: float = 1.0,
    text_strength: float | None = None,
    dtype: torch.dtype | None = None,
    progress: Report | None = None,
    catalog: Catalog | None = None,
) -> Baked:
    """Writes a new checkpoint in which a LoRA acts at a strength without being loaded.

    Sums are taken in float32 and rounded once. Never more than one tensor is in memory, and tensors that the LoRA does not
    change keep their bytes. The file gets its name once it is whole and was read back, and never takes another's place.

    Args:
        base: an SD1.5 or SDXL checkpoint with the original names, or a UNet of either alone, with diffusers' names as well.
        lora: a plain LoRA, linear or convolutional, in the naming of kohya, diffusers, PEFT or ComfyUI.
        target: the new file, which ends in .safetensors.
        strength: of the LoRA in the UNet, as a host applies it; 0 leaves it as it is, below 0 takes it away.
        text_strength: in the text encoders; None is as in the UNet.
        dtype: of every floating point tensor in the new file; None keeps each one's own.
        progress: called with what goes on, the bytes done and all of them. What it raises ends it, leaves nothing behind and is
            passed on.
        catalog: by which the LoRA is told, the pack's own by default; a person's own has their recipes, too.
    Raises: UnsupportedModelError for wrong or damaged files, a LoRA of another family or kind, and one that does not fit;
        BuildError for a strength that the dtype cannot hold, a name that is taken, too full a disk or a folder that cannot be
        written; OSError of the system otherwise.
    """
    base, lora, target = Path(base), Path(lora), Path(target)
    strengths = (strength, strength if text_strength is None else text_strength)
    if not all(map(math.isfinite, strengths)):
        raise BuildError(f"A strength must be a finite number, got {_worded(strengths)}.")
    known = recognise(lora, catalog)
    with open_tensors(base) as model, open_tensors(lora) as change:
        plan = plan_bake(model, change, *strengths)
        told = f"{lora.name} at strength {_worded(strengths)}"
        pieces = [
            _changed(model, change, plan.changes[key], dtype, told) if key in plan.changes else as_dtype(model, key, dtype)
            for key in sorted(model.header, key=lambda key: model.header[key]["data_offsets"])
        ]
        with new_file(target, sum(piece.size for piece in pieces)) as part:
            hashes = _hashes([model, change], progress)
            for name in change.header:
                require_finite(lora, name, change.tensor(name))
            write_pieces(part, pieces, _metadata(model, change, hashes, strengths, known), progress)
            model.require_unchanged()
            change.require_unchanged()
    noted = f"It is noted in {target.name} how {lora.name} is sampled: leave the variant at auto there."
    return Baked(target, plan.match, " ".join(filter(None, [plan.note, few_step_note(known, strength) and noted])))


def _worded(strengths: Sequence[float]) -> str:
    return " and ".join(f"{value:g}" for value in dict.fromkeys(strengths))


def _changed(model: TensorFile, lora: TensorFile, changes: Sequence[Change], dtype: torch.dtype | None, told: str) -> Piece:
    """Returns a tensor of the checkpoint with what a LoRA adds to it."""
    key = changes[0].place.key
    stored = stored_in(model, key)
    final = dtype or stored.dtype

    def content() -> Iterator[memoryview]:
        values = model.tensor(key)
        values = values if values.dtype is torch.float64 else values.float()
        for change in changes:
            _add(values, change, lora)
        low, high = map(float, torch.aminmax(values))  # both are NaN where one value is
        if not -torch.finfo(final).max <= low <= high <= torch.finfo(final).max:
            raise BuildError(
                f"With {told}, {key} of {model.path.name} has values from {low:.4g} to {high:.4g}, which "
                f"{str(final).removeprefix('torch.')} does not hold; lower the strength, or choose fp32."
            )
        yield bytes_of(values.to(final))

    return Piece(key, NAMES[final], stored.shape, content, is_computed=True)


def _add(values: torch.Tensor, change: Change, lora: TensorFile) -> None:
    """Adds scale * up @ down to a weight, or to a part of it, in place."""
    place, kind = change.place, values.dtype
    up, down = lora.tensor(change.up).to(kind).flatten(1), lora.tensor(change.down).to(kind)
    if change.mid:  # from the rank to itself, over a kernel: [rank, rank, height, width]
        down = torch.einsum("jrhw,ri->jihw", lora.tensor(change.mid).to(kind), down.flatten(1))
    rows = values.flatten(1)
    rows = rows.T if place.is_turned else rows.narrow(0, place.first, place.shape[0])
    rows.addmm_(up, down.flatten(1), alpha=change.scale)


def _hashes(files: Sequence[TensorFile], progress: Report | None) -> list[str]:
    """Returns each file's SHA-256 in hex, read through its own opening."""
    done, total, hashes = 0, sum(file.stamp[1] for file in files), []
    for file in files:
        digest, size = hashlib.sha256(), file.stamp[1]
        for at in range(0, size, BLOCK):
            count = min(BLOCK, size - at)
            digest.update(bytes_of(file.read(at, count)))
            done += count
            if progress:
                progress(READING, done, total)
        hashes.append(digest.hexdigest())
    return hashes


def _metadata(
    model: TensorFile, lora: TensorFile, hashes: Sequence[str], strengths: tuple[float, float], known: Recognition
) -> dict[str, str]:
    """Returns the base's metadata with what was done to it."""
    done = {"base": model.path.name, "base_sha256": hashes[0], "lora": lora.path.name, "lora_sha256": hashes[1]}
    done |= {"strength": f"{strengths[0]:g}", "text_strength": f"{strengths[1]:g}"}
    new = {f"hyper_sd.{key}": text for key, text in done.items()}
    earlier = {key: text for key, text in model.metadata.items() if key in new or key == BEFORE}
    kept = {key: text for key, text in model.metadata.items() if key not in earlier and key not in UNTRUE}
    kept |= start_note(model.path.name, model.metadata)
    kept, earlier = _few_steps_noted(kept, earlier, known, strengths[0])
    return {"format": "pt", **kept, **({BEFORE: json.dumps(earlier)} if earlier else {}), **new}


def _few_steps_noted(
    kept: dict[str, str], earlier: dict[str, str], known: Recognition, strength: float
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the metadata with the note on few steps: a style leaves the one there, a few-step LoRA takes its place."""
    if known.variant is None or strength == 0:
        return kept, earlier
    before = {FEW_STEP: kept.pop(FEW_STEP)} if FEW_STEP in kept else {}
    return kept | few_step_note(known, strength), earlier | before
