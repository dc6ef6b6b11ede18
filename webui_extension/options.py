"""The settings page of the A1111 family."""

import gradio as gr
from modules import script_callbacks, shared

from ..samplers.timesteps import ENDS
from . import host

SECTION = ("hyper_sd", "Hyper-SD")
PREFIX = "hyper_sd_"  # of every setting's name
DEFAULT_ETA = 0.3
NOISES = ["as the host's other samplers", "as ComfyUI"]


def default_eta() -> float:
    """Returns the sampler's eta in [0, 1] where nothing else was chosen for the image."""
    return float(host.option("hyper_sd_default_eta", DEFAULT_ETA))


def end_on_zero() -> bool:
    """Returns whether the last step lands on sigma 0, which is the hosts' own way."""
    return host.option("hyper_sd_end", ENDS[0]) == ENDS[0]


def comfyui_noise() -> bool:
    """Returns whether the noise between the steps is ComfyUI's in place of the host's."""
    return host.option("hyper_sd_noise", NOISES[0]) == NOISES[1]


def add() -> None:
    """Adds the page's settings. Each has a component, without which the host would not start."""
    eta = shared.OptionInfo(
        DEFAULT_ETA, "Eta of the sampler Hyper-SD TCD", gr.Slider, {"minimum": 0, "maximum": 1, "step": 0.05}, section=SECTION
    )
    end = shared.OptionInfo(
        ENDS[0], "Where the last step lands", gr.Radio, {"choices": list(ENDS)}, section=SECTION, infotext="Hyper-SD end"
    )
    skip = shared.OptionInfo(True, "At CFG 1, do not evaluate the negative prompt", gr.Checkbox, section=SECTION)
    noise = shared.OptionInfo(
        NOISES[0], "Noise between the steps", gr.Radio, {"choices": NOISES}, section=SECTION, infotext="Hyper-SD noise"
    )
    eta.info("0 to 1: 0 = deterministic, 1 = fully stochastic; used where the Hyper-SD panel is off and chooses eta by itself")
    end.info("sigma 0 is a clean image; alpha_bar[0] leaves the trace of noise that diffusers leaves, to compare with it")
    noise.info("only eta above 0 needs it; with ComfyUI's, and the setting RNG on CPU, a seed gives the same picture there")
    skip.info("same pixels in about half the time on AUTOMATIC1111; the Forge family does so anyway")
    for name, info in {"default_eta": eta, "noise": noise, "end": end, "skip_negative": skip}.items():
        shared.opts.add_option(PREFIX + name, info)


def register() -> None:
    """Has the settings added when the host builds its page. Reload UI has forgotten earlier callbacks."""
    script_callbacks.on_ui_settings(add)


def unregister() -> None:
    """Takes the settings off the page. What was saved stays in the host's file."""
    for name in [name for name in shared.opts.data_labels if name.startswith(PREFIX)]:
        del shared.opts.data_labels[name]
