"""A WebUI extension of the tests: keeps what a run computed as tensors, in records/ of the host's data folder.

Copied into the host's extensions folder as scripts/recorder.py. It only listens, but where a test asks it to have the noise
drawn ahead as for a graphics card, or to tell the sampler what the panel tells it for SDXL alone.
"""

import ast
import gc
import json
import sys
import threading
from pathlib import Path

import safetensors.torch
import torch
from modules import paths_internal, script_callbacks, scripts, shared

FOLDER = Path(paths_internal.data_path) / "records"
CALLS: list = []  # the network calls of the batch that is being made
THREADS: list = []  # the thread of every noise that was drawn ahead
ORIGINALS: dict = {}
RUN: dict = {}  # what the sampler is told in place of the panel, where a test asks for it


def _tensor(conditioning) -> torch.Tensor:
    return conditioning["crossattn"] if isinstance(conditioning, dict) else conditioning


def _loras() -> list:
    """Returns [name, strength] of what is activated; the Forge family keeps them in the text by which it knows a change."""
    applied = getattr(shared.sd_model, "current_lora_hash", None)
    if applied:
        return [[Path(file).stem, float(strength)] for file, strength, *_ in ast.literal_eval(applied)]
    networks = sys.modules.get("networks")
    return [[net.name, float(net.unet_multiplier)] for net in getattr(networks, "loaded_networks", [])]


def on_call(params) -> None:
    """Keeps a call's input; what was activated counts at this moment, so the LoRAs are noted here."""
    texts = {"cond": params.text_cond, "uncond": params.text_uncond}
    tensors = {name: _tensor(value).clone() for name, value in texts.items() if value is not None}
    CALLS.append(({"x": params.x.clone(), "sigma": params.sigma.clone(), **tensors}, _loras()))


def on_denoised(params) -> None:
    """Keeps a call's prediction, guidance included."""
    CALLS[-1][0]["denoised"] = params.x.clone()


class Recorder(scripts.Script):
    """Writes a file a batch."""

    def title(self) -> str:
        return "Recorder"

    def show(self, is_img2img: bool):
        return scripts.AlwaysVisible

    def process_batch(self, p, *values, **batch) -> None:
        CALLS.clear()
        if RUN:
            p.hyper_sd_run = sys.modules["hyper_sd.webui_extension.schedule"].Run(**RUN)

    def post_sample(self, p, ps, *values) -> None:
        latents = ps.samples if torch.is_tensor(ps.samples) else CALLS[-1][0]["denoised"]  # the hires pass hands on pictures
        kept = {"latents": latents, "image": getattr(p, "init_latent", None), "mask": getattr(p, "nmask", None)}
        tensors = {name: value for name, value in kept.items() if torch.is_tensor(value)}
        for i, (call, _) in enumerate(CALLS):
            tensors |= {f"{i}.{name}": value for name, value in call.items()}
        notes = {"loras": json.dumps([loras for _, loras in CALLS]), "seeds": json.dumps(list(p.seeds))}
        FOLDER.mkdir(exist_ok=True)
        tensors = {name: value.detach().float().cpu().contiguous().clone() for name, value in tensors.items()}
        safetensors.torch.save_file(tensors, FOLDER / f"{len(list(FOLDER.iterdir())):04}.safetensors", notes)


def _set_ahead(on: bool) -> None:
    """Has the pack draw the noise between the steps ahead, by threads, or ends that; the memory is not pinned here."""
    noise = sys.modules["hyper_sd.samplers.noise"]
    for name, value in {"draws_ahead": lambda device: True, "_pinned_like": torch.empty_like, "_draw_into": _counted}.items():
        kept = ORIGINALS.setdefault(name, getattr(noise, name))
        setattr(noise, name, value if on else kept)
    THREADS.clear()


def _counted(*arguments):
    THREADS.append(threading.current_thread().name)
    return ORIGINALS["_draw_into"](*arguments)


def on_app(_, app) -> None:
    """Adds the tests' routes."""

    @app.get("/recorder/ahead/{on}")
    def ahead(on: bool) -> dict:  # returns the threads that have drawn since it was asked last
        threads = [*THREADS]
        _set_ahead(on)
        return {"threads": threads}

    @app.get("/recorder/run")
    def run(rule: str) -> dict:  # takes the fields of the sampler's Run as JSON; none ends it
        RUN.clear()
        RUN.update(json.loads(rule))
        return RUN

    @app.get("/recorder/scorers")
    def scorers() -> dict:  # returns the scorers that are in memory
        kind = sys.modules["hyper_sd.rewards.scorer"].Scorer
        gc.collect()
        return {"held": [type(thing).__name__ for thing in gc.get_objects() if issubclass(type(thing), kind)]}

    @app.get("/recorder/blip")
    def blip() -> dict:  # imports what Interrogate CLIP imports, without its gigabytes of weights
        if not getattr(shared, "interrogator", None):
            return {"file": None}
        shared.interrogator.create_fake_fairscale()
        import models.blip

        return {"file": models.blip.__file__}


script_callbacks.on_cfg_denoiser(on_call)
script_callbacks.on_cfg_after_cfg(on_denoised)
script_callbacks.on_app_started(on_app)
