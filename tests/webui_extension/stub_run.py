"""One image on the stub host: the order of the hosts' calls, their random numbers, their infotext and its pasting."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .stub_host import Component, StubHost, parse_prompt

SHAPE = (4, 8, 8)
DOOR = Path(__file__).resolve().parents[2] / "scripts" / "hyper_sd.py"


def unload_extension(host: StubHost) -> None:
    """Does what a host does first at Reload UI, and where the extension has been switched off, all that it does."""
    for callback in host.callbacks["on_script_unloaded"]:
        callback()
    for listed in host.callbacks.values():
        listed.clear()
    host.scripts.clear()
    host._modules["modules.sd_samplers"].set_samplers()


def load_extension(host: StubHost) -> None:
    """Does what a host does at its start and at Reload UI: forgets callbacks and scripts, runs the door, builds the page."""
    unload_extension(host)
    script_class = runpy.run_path(str(DOOR))["HyperSDScript"]
    for name in ("on_ui_settings", "on_before_ui"):
        for callback in host.callbacks[name]:
            callback()
    script = script_class()
    host.prompt = Component(elem_id="txt2img_prompt", value="")  # the hosts make it before any script's controls
    for part in (Component(elem_id="txt2img_neg_prompt"), host.prompt, Component()):
        script.after_component(part)
    script.controls = script.ui(False)
    host.scripts[:] = [script]


class ImageRNG:
    """A generator an image; the host makes the start noise from its first draw."""

    def __init__(self, seeds: list[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def next(self) -> torch.Tensor:
        """Returns noise [images, ...]."""
        return torch.stack([torch.randn(SHAPE, generator=generator) for generator in self.generators])


class Processing(SimpleNamespace):
    """The host's processing object."""

    def __init__(self, **given: Any):
        values = {
            "prompt": "cat", "negative_prompt": "dog", "seed": 1, "batch_size": 1, "n_iter": 1, "steps": 20, "cfg_scale": 7.0,
            "sampler_name": "Euler", "scheduler": "Automatic", "eta": None, "denoising_strength": 0.75, "init_latent": None,
            "mask": None, "enable_hr": False, "hr_prompt": "", "hr_second_pass_steps": 0, "hr_scheduler": None,
            "is_hr_pass": False, "extra_generation_params": {}, "override_settings": {}, "disable_extra_networks": False,
            "sampler_noise_scheduler_override": None, "image_cfg_scale": None, "args": [], "activations": [], "comments": [],
            "hr_extra_network_data": None,
        }  # fmt: skip
        super().__init__(**{**values, **given})

    def comment(self, text: str) -> None:
        """Shown below the images, once."""
        self.comments += [text] * (text not in self.comments)


def process_images(host: StubHost, p: Processing) -> list[torch.Tensor]:
    """Returns the latents of every image; the script callbacks come in the hosts' order."""
    samplers = host._modules["modules.sd_samplers"]
    host.shared.state.interrupted = False
    if hasattr(samplers, "get_sampler_and_scheduler"):
        p.sampler_name, p.scheduler = samplers.get_sampler_and_scheduler(p.sampler_name, p.scheduler, convert_automatic=False)
    else:  # Forge-classic's images have no schedule type
        del p.scheduler, p.hr_scheduler
    p.sd_model = host.model
    p.all_prompts = [p.prompt] * (p.batch_size * p.n_iter)
    p.all_seeds = [p.seed + i for i in range(len(p.all_prompts))]
    for script in host.scripts:
        script.process(p, *p.args)
    images = []
    for n in range(p.n_iter):
        if host.shared.state.interrupted:
            break
        p.seeds = p.all_seeds[n * p.batch_size : (n + 1) * p.batch_size]
        p.rng = ImageRNG(p.seeds)
        text, p.extra_network_data = parse_prompt(p.prompt)
        if p.enable_hr:
            p.hr_extra_network_data = parse_prompt(p.hr_prompt or p.prompt)[1]
        host.activate(p, p.extra_network_data)
        for script in host.scripts:
            script.process_batch(p, *p.args, batch_number=n)
        images += _sample(host, p, text)
        host.active_loras = []
    p.infotext = infotext(p, samplers)
    return images


def _sample(host: StubHost, p: Processing, text: str) -> list[torch.Tensor]:
    samplers = host._modules["modules.sd_samplers"]

    def create(name: str) -> Any:
        data = samplers.all_samplers_map[name]
        sampler = data.constructor(host.model)
        sampler.config = data
        return sampler

    cond = SimpleNamespace(batch=[[SimpleNamespace(text=text, weight=1.0)] for _ in p.seeds])
    noise = p.rng.next()
    if p.init_latent is not None:
        done = create(p.sampler_name).sample_img2img(
            p, p.init_latent.expand(len(noise), -1, -1, -1), noise, cond, p.negative_prompt
        )
        return list(done)
    done = create(p.sampler_name).sample(p, noise, cond, p.negative_prompt)
    if p.enable_hr:
        if hasattr(p, "hr_scheduler"):
            p.hr_scheduler = p.hr_scheduler or p.scheduler
        p.is_hr_pass, p.rng = True, ImageRNG(p.seeds)
        host.activate(p, p.hr_extra_network_data)
        steps = p.hr_second_pass_steps or p.steps
        done = create(p.sampler_name).sample_img2img(p, done, p.rng.next(), cond, p.negative_prompt, steps=steps)
        p.is_hr_pass = False
    return list(done)


def infotext(p: Processing, samplers: Any) -> str:
    """Returns the line under an image."""
    schedule = {"Schedule type": p.scheduler} if hasattr(samplers, "get_sampler_and_scheduler") else {}
    notes = {"Steps": p.steps, "Sampler": p.sampler_name, **schedule, "CFG scale": p.cfg_scale, "Seed": p.seed}
    notes |= p.extra_generation_params
    return ", ".join(
        f'{key}: "{value}"' if re.search("[,:]", str(value)) else f"{key}: {value}" for key, value in notes.items()
    )


def parse(text: str) -> dict[str, str]:
    """Returns an infotext's values."""
    found = re.findall(r'\s*([\w ()-]+):\s*("(?:[^"])*"|[^,]*)(?:,|$)', text)
    return {key: value.strip('"') for key, value in found}


def paste(host: StubHost, script: Any, text: str) -> Processing:
    """Returns the image that the page would make after an infotext was pasted into it."""
    values, notes = [control.value for control in script.controls], parse(text)
    for control, key in script.infotext_fields:
        value = key(notes) if callable(key) else notes.get(key)
        if value is not None:
            kind = type(control.value)
            as_kind = False if kind is bool and value == "False" else float(value) if kind is int else kind(value)
            values[next(i for i, other in enumerate(script.controls) if other is control)] = as_kind
    labels = {info.infotext: name for name, info in host.shared.opts.data_labels.items() if getattr(info, "infotext", None)}
    handled = {key for _, key in script.infotext_fields if isinstance(key, str)}
    return Processing(
        args=values, steps=int(notes["Steps"]), sampler_name=notes["Sampler"], scheduler=notes.get("Schedule type"),
        cfg_scale=float(notes["CFG scale"]), seed=int(notes["Seed"]),
        override_settings={labels[key]: value for key, value in notes.items() if key in labels and key not in handled},
    )  # fmt: skip
