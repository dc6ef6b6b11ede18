"""The sampler "Hyper-SD TCD" of the A1111 family: the core's sample_tcd behind the host's own KDiffusionSampler."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from modules import sd_samplers, sd_samplers_common, sd_samplers_kdiffusion, shared

from ..models.sampling_plan import MAX_STEPS
from ..samplers.noise import noise_ahead
from ..samplers.schedule import NoiseSchedule, schedule_of
from ..samplers.tcd import plan_steps, sample_tcd
from ..samplers.timesteps import ENDS, sigmas_at
from . import host, options
from .kept_image import kept_by_own_level
from .schedule import LABEL, Run, timesteps_of, untried_in
from .settings_table import START_KEY

NAME = "Hyper-SD TCD"
ALIASES = ["hyper_sd_tcd"]
GUARD = "Hyper-SD"  # what is left of NAME where another extension has a schedule type called TCD
RUN = "hyper_sd_run"  # the Run on the host's processing object; its eta is shared with every other sampler
KEYS = (
    "Hyper-SD eta", "Hyper-SD segments", "Hyper-SD timesteps", "Hyper-SD jumps", "Hyper-SD shift", "Hyper-SD end",
    "Hyper-SD noise", START_KEY,
)  # fmt: skip


def run_of(p: Any) -> Run:
    """Returns what was chosen for this image, else the defaults with the eta of the settings page."""
    return getattr(p, RUN, None) or Run(eta=options.default_eta())


class HyperSDSampler(sd_samplers_kdiffusion.KDiffusionSampler):
    """Segmented consistency sampling. The steps of a pass, its noise and its callbacks stay the host's."""

    def __init__(self, sd_model: Any):
        super().__init__(self._run, sd_model)
        self._pass: tuple[int, int, float] | None = None  # img2img: grid steps, steps taken, strength

    def sample_img2img(self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        """Starts from an image. The host takes the last steps of what get_sigmas returns."""
        count, last = sd_samplers_common.setup_img2img_steps(p, steps)
        self._pass = count, last + 1, p.denoising_strength
        try:
            return super().sample_img2img(
                p, x, noise, conditioning, unconditional_conditioning, steps, image_conditioning=image_conditioning
            )
        finally:
            self._pass = None

    def get_sigmas(self, p: Any, steps: int) -> torch.Tensor:
        """Returns this project's grid where the schedule type is Automatic or Hyper-SD, else the chosen one."""
        name = host.schedule_name(p)
        if p.sampler_noise_scheduler_override or name not in (host.AUTOMATIC, LABEL):
            return super().get_sigmas(p, steps)
        run, schedule = run_of(p), schedule_of(self.model_wrap_cfg)
        taken, strength = self._pass[1:] if self._pass else (steps, None)
        if steps < 1:
            return torch.zeros(1)  # strength 0: nothing to do
        timesteps, said = timesteps_of(run, taken, strength)
        if said := " ".join(filter(None, (untried_in(run, taken, p.is_hr_pass, strength), said))):
            p.comment(f"Hyper-SD: {said}")
        if not p.is_hr_pass and len(timesteps) <= MAX_STEPS:
            p.extra_generation_params["Hyper-SD timesteps"] = " ".join(map(str, timesteps))
        elif name != (getattr(p, "scheduler", None) or name):
            p.extra_generation_params["Hires schedule type"] = name
        sigmas = sigmas_at(schedule, timesteps, options.end_on_zero())
        # The host slices off what comes before; a slice of a finer grid would start too high and skip the segments' starts.
        return torch.cat([sigmas[:1].expand(steps + 1 - len(sigmas)), sigmas])

    def initialize(self, p: Any) -> dict[str, Any]:
        """Notes for the infotext what the image needs to be made again, and returns the host's own arguments."""
        arguments = super().initialize(p)
        run = run_of(p)
        self.eta = run.eta  # by which the host tells whether its noise seed delta counts
        p.extra_generation_params.update({"Hyper-SD eta": f"{run.eta:g}", "Hyper-SD segments": run.num_segments})
        if run.is_start_chosen:
            p.extra_generation_params[START_KEY] = run.start_timestep
        if run.to_clean:
            p.extra_generation_params["Hyper-SD jumps"] = "to the clean image"
        if run.timestep_shift != 1:
            p.extra_generation_params["Hyper-SD shift"] = f"{run.timestep_shift:g}"
        if not options.end_on_zero():
            p.extra_generation_params["Hyper-SD end"] = ENDS[1]
        if options.comfyui_noise():
            p.extra_generation_params["Hyper-SD noise"] = options.NOISES[1]
        return arguments

    def callback_state(self, seen: dict[str, Any]) -> None:
        """Has the host's prompts, which change by a count of evaluations, count the steps that need none as well."""
        self.model_wrap_cfg.step = seen["i"] + 1
        super().callback_state(seen)

    def _run(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        p, run, schedule = self.p, run_of(self.p), schedule_of(model)
        if self._pass is None and not shared.opts.sgm_noise_multiplier and not schedule.is_flow:
            # The hosts start from noise * sigma, the recipe from x / sqrt(1 + sigma^2) of deviation 1: 1.9 % more at t = 800.
            x = x * (1 + sigmas[0] ** -2) ** 0.5
        rule = run.rule
        noise = _comfyui_noise(x, p, schedule, sigmas, rule) if options.comfyui_noise() else nullcontext(_host_noise(p))
        kept = kept_by_own_level(model, schedule, sigmas, run.timestep_shift)
        with host.negative_prompt_left_out(self, p, extra_args), noise as noise_of_step, kept as asked:
            return sample_tcd(asked, x, sigmas, extra_args, callback, disable, noise_of_step, schedule=schedule, **rule)


def _host_noise(p: Any) -> Callable[..., torch.Tensor]:
    """Returns the host's generators, one for each image, so that a batch equals its single images."""
    return lambda *_: p.rng.next()


def _comfyui_noise(
    x: torch.Tensor, p: Any, schedule: NoiseSchedule, sigmas: torch.Tensor, rule: dict[str, Any]
) -> AbstractContextManager[Callable[..., torch.Tensor]]:
    """Returns the core's own noise, which ComfyUI has too, for every image by its own seed."""
    steps = plan_steps(schedule, sigmas, **rule)
    return noise_ahead(x, list(p.seeds), [step.next_timestep for step in steps if step.noise > 0])


def register() -> None:
    """Adds the sampler to every list of the host, and takes away the one that an earlier load added."""
    unregister()
    sampler = sd_samplers_common.SamplerData(NAME, HyperSDSampler, ALIASES, {"uses_ensd": True})
    sd_samplers.all_samplers.append(sampler)
    sd_samplers.all_samplers_map.update({NAME: sampler, GUARD: sampler})
    _refresh()


def unregister() -> None:
    """Takes the sampler out of every list of the host."""
    sd_samplers.all_samplers[:] = [data for data in sd_samplers.all_samplers if data.name != NAME]
    for name in (NAME, GUARD):
        sd_samplers.all_samplers_map.pop(name, None)
    _refresh()


def _refresh() -> None:
    """Has the host make its other lists anew, and forget what it has looked up in the old ones."""
    sd_samplers.set_samplers()
    lookup = getattr(sd_samplers, "get_sampler_and_scheduler", None)  # C has none
    if hasattr(lookup, "cache_clear"):
        lookup.cache_clear()
