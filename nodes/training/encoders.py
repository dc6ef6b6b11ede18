"""The host's VAE and CLIP as training's encoders: their results are those of VAEEncode and CLIPTextEncode, kept by content."""

import hashlib
from typing import Any

import comfy.sd1_clip
import torch

from ...errors import TrainingError
from ...training.data.cache import Encoders
from ...training.data.examples import Conditioning

STATES = "states"  # what a CONDITIONING entry has beside its dictionary of tensors
SAMPLE = 8  # values of each tensor that stand for all of it
UNSET = ("clip_l.transformer.text_projection.weight",)
PHRASE = "a photo of (two:1.2) grey cats"  # its tokens tell one vocabulary from another


def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Returns latents as VAEEncode gives them: unscaled, float32 [batch, channels, height, width].

    Args: pixels: float32 [batch, 3, height, width] in [-1, 1].
    """
    return vae.encode(pixels.add(1).div(2).movedim(1, -1))


def encode_prompt(clip: Any, text: str) -> Conditioning:
    """Returns a prompt's states and the other tensors of CLIPTextEncode's one entry by name, each [1, ...]."""
    ((states, extras),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    # Without a projection of its own in the checkpoint, SD1.5's pooled output is whatever lay in memory; nothing uses it.
    finite = {name: value for name, value in extras.items() if torch.is_tensor(value) and bool(value.isfinite().all())}
    return {STATES: states, **finite}


def conditioning_entry(tensors: Conditioning) -> list:
    """Returns encoded tensors as an entry of the host's CONDITIONING."""
    return [tensors[STATES], {"pooled_output": None, **{k: t for k, t in tensors.items() if k != STATES}}]


def host_encoders(clip: Any, vae: Any) -> Encoders:
    """Returns the host's CLIP and VAE as encoders, for one image or prompt at a time: prompts differ in length, so in shape.

    Raises: TrainingError for a CLIP with hooks, whose results depend on the step they are used at.
    """
    if clip.patcher.forced_hooks is not None or clip.apply_hooks_to_conds:
        raise TrainingError("This CLIP carries hooks, which change it from step to step; wire in the CLIP from before them.")

    def prompts(texts: list[str]) -> Conditioning:
        (text,) = texts
        return encode_prompt(clip, text)

    return Encoders(lambda pixels: encode_pixels(vae, pixels), prompts, fingerprint(clip, vae))


def fingerprint(clip: Any, vae: Any) -> str:
    """Returns a name of both encoders' weights and settings that is the same whenever they are loaded again.

    Of each tensor count its name, its shape and a sample of its values; patches and the CLIP's layer count as well.
    """
    digest = hashlib.sha256()
    tokens = clip.tokenize(PHRASE)
    _feed(digest, [type(clip.cond_stage_model), clip.layer_idx, clip.tokenizer_options, tokens])
    _feed(digest, [type(vae.first_stage_model), vae.vae_dtype])
    # SD1.5 checkpoints lack this weight, and the host leaves it as the memory was; their models do not use it.
    unset = (
        UNSET
        if isinstance(clip.cond_stage_model, comfy.sd1_clip.SD1ClipModel) and clip.cond_stage_model.clip_name == "l"
        else ()
    )
    for patcher in (clip.patcher, vae.patcher):
        kept = patcher.backup  # the weights from before the patches that are applied at the moment
        for name, tensor in sorted(patcher.model.state_dict().items()):
            if name in unset:
                continue
            _feed(digest, [name, kept[name].weight if name in kept else tensor])
        _feed(digest, patcher.patches)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Adds a value's content to the digest, never where it lies in memory."""
    if torch.is_tensor(value):
        flat = value.detach().reshape(-1)
        sample = flat[:: max(len(flat) // SAMPLE, 1)][:SAMPLE].float().cpu()
        digest.update(f"{value.dtype} {tuple(value.shape)} {sample.tolist()}".encode())
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            digest.update(f"{name}:".encode())
            _feed(digest, value[name])
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} of".encode())
        for part in value:
            _feed(digest, part)
    elif hasattr(value, "weights"):  # a patch, as the host keeps one
        digest.update(type(value).__qualname__.encode())
        _feed(digest, value.weights)
    else:
        digest.update(str(getattr(value, "__qualname__", value)).encode())
