"""A stub of the A1111 family's samplers: only the names the extension uses, with the behaviour that bites."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ...samplers.schedule import NoiseSchedule


class Interrupted(BaseException):
    """What the hosts raise from inside a model call; only a sampler's launch may catch it."""


class SamplerData(NamedTuple):
    """One entry of the sampler lists."""

    name: str
    constructor: Callable
    aliases: list
    options: dict


class Scheduler(NamedTuple):
    """One schedule type."""

    name: str
    label: str
    function: Callable | None
    need_inner_model: bool = False
    aliases: tuple = ()
    default_rho: float = -1


class PlainDenoiser:
    """What k-diffusion's CompVisDenoiser does for a discrete model, without k-diffusion."""

    def __init__(self, model: Any, quantize: bool = False):
        self.inner_model, self.v = model, model.parameterization == "v"
        self.sigmas = ((1 - model.alphas_cumprod) / model.alphas_cumprod) ** 0.5

    def get_sigmas(self, n: int) -> torch.Tensor:
        """Evenly spaced down to the lowest sigma: not a grid that Hyper-SD was made for."""
        places = torch.linspace(len(self.sigmas) - 1, 0, n).round().long()
        return torch.cat([self.sigmas[places], torch.zeros(1)])

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **conditions: Any) -> torch.Tensor:
        level = sigma[:, None, None, None].to(x)
        timestep = NoiseSchedule.from_sigmas(self.sigmas).timestep(float(sigma[0]))
        out = self.inner_model.apply_model(x / (level**2 + 1) ** 0.5, torch.full_like(sigma, timestep), **conditions)
        return x / (level**2 + 1) - out * level / (level**2 + 1) ** 0.5 if self.v else x - out * level


def module(name: str, **content: Any) -> types.ModuleType:
    """Returns a module of these names."""
    new = types.ModuleType(name)
    new.__dict__.update(content)
    return new


def install(shared: Any, denoiser: Callable, schedule_types: bool) -> dict[str, types.ModuleType]:
    """Returns the modules by name; without schedule types they are Forge-classic's."""
    modules = {name: module(name) for name in ("sd_samplers", "sd_samplers_common", "sd_samplers_kdiffusion")}
    schedulers = _schedulers() if schedule_types else None
    if schedulers:
        modules["sd_schedulers"] = schedulers

    def setup_img2img_steps(p: Any, steps: int | None = None) -> tuple[int, int]:
        if shared.opts.img2img_fix_steps or steps is not None:
            wanted = steps or p.steps
            return (int(wanted / min(p.denoising_strength, 0.999)) if p.denoising_strength > 0 else 0), wanted - 1
        return p.steps, int(min(p.denoising_strength, 0.999) * p.steps)

    modules["sd_samplers_common"].__dict__.update(SamplerData=SamplerData, setup_img2img_steps=setup_img2img_steps)
    own = {"shared": shared, "denoiser": staticmethod(denoiser), "schedulers": schedulers}
    own["setup_img2img_steps"] = staticmethod(setup_img2img_steps)
    modules["sd_samplers_kdiffusion"].KDiffusionSampler = type("KDiffusionSampler", (KDiffusionSampler,), own)
    _lists(modules["sd_samplers"], modules["sd_samplers_kdiffusion"].KDiffusionSampler, shared, schedulers)
    return modules


def _karras(n: int, sigma_min: float, sigma_max: float, device: Any) -> torch.Tensor:
    ramp = torch.linspace(0, 1, n)
    return torch.cat([(sigma_max ** (1 / 7) + ramp * (sigma_min ** (1 / 7) - sigma_max ** (1 / 7))) ** 7, torch.zeros(1)])


def _schedulers() -> types.ModuleType:
    listed = [Scheduler("automatic", "Automatic", None), Scheduler("karras", "Karras", _karras)]
    return module(
        "sd_schedulers",
        Scheduler=Scheduler,
        schedulers=listed,
        schedulers_map={key: scheduler for scheduler in listed for key in (scheduler.name, scheduler.label)},
    )


def _lists(module: Any, sampler_class: type, shared: Any, schedulers: Any) -> None:
    def euler(model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0):
        for i in range(len(sigmas) - 1):
            denoised = model(x, sigmas[i] * x.new_ones([len(x)]), **extra_args)
            x = denoised + (x - denoised) * sigmas[i + 1] / sigmas[i]
        return x

    listed = [SamplerData(name, lambda model: sampler_class(euler, model), [], {}) for name in ("DPM++ 2M", "Euler")]
    module.all_samplers, module.all_samplers_map = listed, {data.name: data for data in listed}
    module.samplers, module.samplers_map = [], {}

    def set_samplers() -> None:
        module.samplers = module.all_samplers
        module.samplers_map.clear()
        module.samplers_map.update({data.name.lower(): data.name for data in module.all_samplers})

    @functools.cache
    def get_sampler_and_scheduler(sampler_name, scheduler_name, *, convert_automatic=True):
        found, name = schedulers.schedulers_map.get(scheduler_name, schedulers.schedulers[0]), sampler_name
        for scheduler in schedulers.schedulers:  # the name trap
            for ending in (scheduler.label, scheduler.name, *scheduler.aliases):
                if name.endswith(f" {ending}"):
                    found, name = scheduler, name[: -len(ending) - 1]
                    break
        return module.all_samplers_map.get(name, module.samplers[0]).name, found.label

    module.set_samplers = set_samplers
    if schedulers:
        module.get_sampler_and_scheduler = get_sampler_and_scheduler
    set_samplers()


class KDiffusionSampler:
    """The base of every k-diffusion sampler; a host's own modules are its class attributes."""

    shared: Any
    denoiser: Callable
    schedulers: Any
    setup_img2img_steps: Callable

    def __init__(self, function, sd_model):
        self.func, self.config, self.last_latent, self.p, self.eta = function, None, None, None, None
        self.eta_option_field, self.eta_default = "eta_ancestral", 1.0
        self.model_wrap_cfg = CFGDenoiser(self.shared, self, self.denoiser(sd_model))
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_sigmas(self, p, steps):
        if self.schedulers is None:
            return self._sigmas_of_the_option(p, steps)
        name = getattr(p, "hr_scheduler" if p.is_hr_pass else "scheduler", None) or "Automatic"
        scheduler = self.schedulers.schedulers_map.get(name)
        if scheduler is None or scheduler.function is None:
            return self.model_wrap.get_sigmas(steps)
        inner = {"inner_model": self.model_wrap} if scheduler.need_inner_model else {}
        low, high = float(self.model_wrap.sigmas[0]), float(self.model_wrap.sigmas[-1])
        return scheduler.function(n=steps, sigma_min=low, sigma_max=high, **inner, device="cpu").cpu()

    def _sigmas_of_the_option(self, p, steps):
        """Forge-classic: an option holds the schedule type of every image and pass."""
        chosen = self.shared.opts.k_sched_type
        if chosen == "Automatic":
            return self.model_wrap.get_sigmas(steps)
        p.extra_generation_params["Schedule type"] = chosen
        return _karras(steps, float(self.model_wrap.sigmas[0]), float(self.model_wrap.sigmas[-1]), "cpu")

    def initialize(self, p):
        self.p = self.model_wrap_cfg.p = p
        self.model_wrap_cfg.step = 0
        self.model_wrap_cfg.image_cfg_scale = getattr(p, "image_cfg_scale", None)
        self.eta = p.eta if p.eta is not None else getattr(self.shared.opts, self.eta_option_field, 0.0)
        if "eta" not in inspect.signature(self.func).parameters:
            return {}
        if self.eta != self.eta_default:  # the parameter called eta is taken over by the host
            p.extra_generation_params["Eta"] = self.eta
        return {"eta": self.eta}

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        sigmas = self.get_sigmas(p, steps or p.steps)
        x = x * ((1 + sigmas[0] ** 2) ** 0.5 if self.shared.opts.sgm_noise_multiplier else sigmas[0])
        return self._launch(p, x, sigmas, conditioning, unconditional_conditioning, steps or p.steps)

    def sample_img2img(self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        steps, t_enc = self.setup_img2img_steps(p, steps)
        sigmas = self.get_sigmas(p, steps)[steps - t_enc - 1 :]
        return self._launch(p, x + noise * sigmas[0], sigmas, conditioning, unconditional_conditioning, t_enc + 1)

    def _launch(self, p, x, sigmas, cond, uncond, steps):
        arguments = self.initialize(p)
        self.model_wrap_cfg.total_steps, self.last_latent = steps, x
        self.shared.state.sampling_steps = steps
        extra = {"cond": cond, "uncond": uncond, "cond_scale": p.cfg_scale, "s_min_uncond": 0, "image_cond": None}
        try:
            return self.func(
                self.model_wrap_cfg, x, sigmas=sigmas, extra_args=extra, disable=True,
                callback=self.callback_state, **arguments,
            )  # fmt: skip
        except Interrupted:
            return self.last_latent

    def callback_state(self, seen):
        self.shared.state.sampling_step = seen["i"]


class CFGDenoiser:
    """Guidance, with A1111's counting of evaluations: two an image and step, one where it leaves the negative prompt out."""

    def __init__(self, shared: Any, sampler: Any, inner_model: Any):
        self.shared, self.sampler, self.inner_model = shared, sampler, inner_model
        self.step, self.total_steps, self.p, self.image_cfg_scale = 0, 1, None, None

    def __call__(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        state, opts = self.shared.state, self.shared.opts
        if state.interrupted:
            raise Interrupted
        state.evaluations.append(len(x))
        denoised = self.inner_model(x, sigma, cond=cond.batch[0][0].text)
        if opts.skip_early_cond and self.step / self.total_steps <= opts.skip_early_cond:
            self.p.extra_generation_params["Skip Early CFG"] = opts.skip_early_cond
        else:
            state.evaluations.append(len(x))
            without = self.inner_model(x, sigma, cond=uncond)
            denoised = without + (denoised - without) * cond_scale
        mask = getattr(self.p, "mask", None)
        if mask is not None:  # 1 where the image is kept
            denoised = denoised * (1 - mask) + self.p.init_latent * mask
        self.step += 1
        self.sampler.last_latent = state.current_latent = denoised
        if state.interrupt_after == self.step:
            state.interrupted = True
        return denoised
