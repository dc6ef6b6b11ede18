"""The host's VAE and CLIP as encoders of training data, with the results of VAEEncode and CLIPTextEncode."""

import hashlib
from typing import Any

import comfy.sd1_clip
import torch

from ...errors import TrainingError
from ...training.data.cache import Encoders
from ...training.data.examples import PROMPT, Conditioning

STATES = "states"  # the name of the tensor that a CONDITIONING's entry has beside its dictionary
SAMPLE = 8  # values of each tensor that enter a fingerprint
UNSET = ("clip_l.transformer.text_projection.weight",)
PHRASE = "a photo of (two:1.2) grey cats"  # its tokens tell one vocabulary from another


def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Returns latents as VAEEncode gives them: unscaled, float32 [batch, channels, height, width].

    Args:
        vae: of the host.
        pixels: float32 [batch, 3, height, width] in [-1, 1].
    """
    return vae.encode(pixels.add(1).div(2).movedim(1, -1))


def encode_prompt(clip: Any, text: str) -> Conditioning:
    """Returns a prompt's states and the other tensors of CLIPTextEncode's one entry by name, each [1, ...]."""
    ((states, extras),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    # Without a projection of its own in the checkpoint, SD1.5's pooled output is whatever lay in memory; nothing uses it.
    finite = {name: value for name, value in extras.items() if torch.is_tensor(value) and bool(value.isfinite().all())}
    return {STATES: states, **finite}


def conditioning_entry(tensors: Conditioning, text: str) -> list:
    """Returns encoded tensors as an entry of the host's CONDITIONING; its text is kept for training that scores pictures."""
    return [tensors[STATES], {"pooled_output": None, PROMPT: text, **{k: t for k, t in tensors.items() if k != STATES}}]


def host_encoders(clip: Any, vae: Any) -> Encoders:
    """Returns the host's CLIP and VAE as encoders of one image or prompt at a time, since prompts differ in length.

    Raises: TrainingError for a CLIP with hooks, whose results depend on the step they are used at.
    """
    if clip.patcher.forced_hooks is not None or clip.apply_hooks_to_conds:
        raise TrainingError("This CLIP carries hooks, which change it from step to step; wire in the CLIP from before them.")

    def prompts(texts: list[str]) -> Conditioning:
        (text,) = texts
        return encode_prompt(clip, text)

    return Encoders(lambda pixels: encode_pixels(vae, pixels), prompts, fingerprint(clip, vae))


def fingerprint(clip: Any, vae: Any) -> str:
    """Returns a hash of both encoders' weights and settings, which is the same whenever they are loaded again.

    It covers the name, the shape and a sample of the values of each tensor, the patches and the CLIP's layer.
    """
    digest = hashlib.sha256()
    tokens = clip.tokenize(PHRASE)
    _feed(digest, [type(clip.cond_stage_model), clip.layer_idx, clip.tokenizer_options, tokens])
    _feed(digest, [type(vae.first_stage_model), vae.vae_dtype])
    # SD1.5 checkpoints lack this weight, and the host leaves it as the memory was; their models do not use it.
    text = clip.cond_stage_model
    unset = UNSET if isinstance(text, comfy.sd1_clip.SD1ClipModel) and text.clip_name == "l" else ()
    for patcher in (clip.patcher, vae.patcher):
        unpatched = patcher.backup  # the weights from before the patches that are applied at the moment
        for name, tensor in sorted(patcher.model.state_dict().items()):
            if name not in unset:
                _feed(digest, [name, unpatched[name].weight if name in unpatched else tensor])
        _feed(digest, patcher.patches)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Adds a value's content to the digest, whatever its address in memory."""
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
