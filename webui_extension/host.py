"""Where the hosts differ. A: AUTOMATIC1111 1.10; F: Forge; R: reForge; C: Forge-classic. The rest is the same on all four."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules import devices, extra_networks, prompt_parser, shared

from ..models.families import FAMILIES, model_of_network
from ..models.network_shapes import shapes_of

AUTOMATIC = "Automatic"
PROBLEM = "Hyper-SD problem"  # in the infotext, and in what the API answers
MANAGEMENT = ("backend.memory_management", "ldm_patched.modules.model_management")  # F; R and C. A has none


def kind() -> str:
    """Returns "forge" on F, R and C, "a1111" on A: the keys of models.host_folders.HOST_FOLDERS."""
    return "forge" if importlib.util.find_spec("modules_forge") else "a1111"


def option(name: str, default: Any) -> Any:
    """Returns one of this extension's settings; where the host runs without a page they are not registered."""
    return getattr(shared.opts, name, default)


def with_styles(prompt: str, names: list[str]) -> str:
    """Returns a prompt with the styles that the page has chosen, as the host puts them in before a picture is planned."""
    return shared.prompt_styles.apply_styles_to_prompt(prompt, names) if names else prompt


def schedule_name(p: Any) -> str:
    """Returns the schedule type of the pass that is about to run."""
    own = getattr(p, "hr_scheduler", None) if p.is_hr_pass else None
    # C has no schedule types in its tabs, only an option for all samplers; what a plan has set counts before it in both passes.
    return own or getattr(p, "scheduler", None) or getattr(shared.opts, "k_sched_type", None) or AUTOMATIC


def schedule_types() -> Any:
    """Returns the host's module of schedule types, None on C, which has none."""
    try:
        from modules import sd_schedulers
    except ImportError:
        return None
    return sd_schedulers


def model(sd_model: Any) -> str | None:
    """Returns which model is loaded: a key of FAMILIES, another model's plain name, None where nothing tells.

    Args:
        sd_model: the host's object of it, or None.
    """
    unet = getattr(getattr(sd_model, "forge_objects", None), "unet", sd_model)  # F, R and C wrap it once more
    network = getattr(getattr(unet, "model", None), "diffusion_model", None)
    return (network is not None and model_of_network(shapes_of(network))) or _marked(sd_model)


def _marked(sd_model: Any) -> str | None:
    """Returns a key of FAMILIES by the host's own marks, for networks whose packed weights tell nothing."""
    if getattr(sd_model, "is_ssd", False):  # A marks SSD-1B as SDXL too; the LoRAs do not fit it
        return None
    if type(sd_model).__name__ == "Flux":  # F alone has it, and gives it no flag
        return "flux"
    flags = {key: family.webui_flag for key, family in FAMILIES.items() if family.webui_flag}
    return next((key for key, flag in flags.items() if getattr(sd_model, flag, False)), None)


def loaded_model() -> Any:
    """Returns the loaded model, None before there is one; shared.sd_model would load it on A."""
    from modules import sd_models

    return getattr(sd_models.model_data, "sd_model", None)


def checkpoint_file(sd_model: Any) -> Path | None:
    """Returns the loaded checkpoint's file."""
    name = getattr(getattr(sd_model, "sd_checkpoint_info", None), "filename", None)
    return Path(name) if name else None


def has_own_text_encoders() -> bool:
    """Whether the person has chosen text encoders beside the checkpoint, which F alone offers."""
    return bool(getattr(shared.opts, "forge_additional_modules", None))


def set_guidance(p: Any, cfg: float, distilled: float | None) -> None:
    """Sets CFG of both passes, and FLUX's distilled guidance; A and C have one CFG for both and no FLUX."""
    p.cfg_scale = cfg
    if hasattr(p, "hr_cfg"):
        p.hr_cfg = cfg
    for name in ("distilled_cfg_scale", "hr_distilled_cfg"):
        if distilled is not None and hasattr(p, name):
            setattr(p, name, distilled)


def stop(p: Any, message: str) -> None:
    """Ends the run before its first step, and says why below the empty gallery, in the infotext and in the page.

    What a script raises the hosts only log, and then go on.
    """
    p.extra_generation_params[PROBLEM] = message
    warn(p, message)
    shared.state.interrupted = True


def warn(p: Any, message: str) -> None:
    """Says something in the page and below the gallery, and lets the run go on."""
    import gradio as gr

    p.comment(message)
    gr.Warning(message)


def words_of(prompt: str, steps: int) -> str:
    """Returns what a prompt asks for at the last step, in plain words: without LoRAs, weights, alternatives and BREAK."""
    text, _ = extra_networks.parse_prompt(prompt)
    ((*_, (_, last)),) = prompt_parser.get_learned_conditioning_prompt_schedules([text], steps)
    parts = prompt_parser.parse_prompt_attention(last)
    return " ".join(" ".join(part for part, _ in parts if part != "BREAK").split())


def has_chosen_script(p: Any) -> bool:
    """Whether one of the host's scripts, such as X/Y/Z plot, makes this job and lays its pictures out by itself."""
    values = getattr(p, "script_args", None)
    return bool(values and values[0])


def make_room(size: int) -> None:
    """Has the host move models off the card until so many bytes are free there."""
    management = next((sys.modules[name] for name in MANAGEMENT if name in sys.modules), None)
    if management is not None:
        management.free_memory(size, devices.device)


def _evaluates_negative_at_one(sampler: Any, extra_args: dict[str, Any]) -> bool:
    if kind() == "forge" or not hasattr(shared.opts, "skip_early_cond"):
        return False  # F, R and C skip it by themselves
    parts = getattr(extra_args.get("cond"), "batch", None)
    # With AND, or a weighted prompt, the negative one has an influence at CFG 1, too.
    plain = parts is not None and all(len(image) == 1 and image[0].weight == 1 for image in parts)
    return plain and extra_args.get("cond_scale") == 1 and sampler.model_wrap_cfg.image_cfg_scale is None


@contextmanager
def negative_prompt_left_out(sampler: Any, p: Any, extra_args: dict[str, Any]) -> Iterator[None]:
    """Spares A the negative prompt's evaluations at CFG 1, which do not change a pixel.

    By A's own option, put back in any case: as an override A would leave it on for ever where it was never saved.
    """
    if not option("hyper_sd_skip_negative", True) or not _evaluates_negative_at_one(sampler, extra_args):
        yield
        return
    data, notes, name, note = shared.opts.data, p.extra_generation_params, "skip_early_cond", "Skip Early CFG"
    before = {key: held[key] for held, key in ((data, name), (notes, note)) if key in held}
    data[name] = 1.0
    try:
        yield
    finally:
        for held, key in ((data, name), (notes, note)):  # the note, pasted, would silence negative prompts at any CFG
            held.pop(key, None)
            held.update({key: before[key]} if key in before else {})
