"""Activates a LoRA for both passes without touching the prompt, and leaves alone what the user wrote there."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules import devices, extra_networks

from ..models.recognition import recognise
from . import host_models
from .prompt_loras import Written, few_step_in

TAGS = ("lora", "lyco")  # <lyco:...> is the hosts' older name of the same


@dataclass(frozen=True)
class Activation:
    """A LoRA by the host's name, and its strength in the first and in the hires pass."""

    name: str
    strength: float
    hires_strength: float


def loras_of(data: Mapping[str, Sequence[Any]] | None) -> list[Written]:
    """Returns the LoRAs among a prompt's parsed tags, whatever their names, in the prompt's order."""
    tags = {str(params.positional[0]): params for tag in TAGS for params in (data or {}).get(tag, []) if params.positional}
    catalog = host_models.DOWNLOADS.catalog()[0]
    listed = host_models.lora_names()
    if any(tag not in listed and catalog.lora_named(tag) for tag in tags):  # the host looks again, too, before it gives up
        host_models.refresh_lists()
        listed = host_models.lora_names()
    paths = {tag: Path(listed[tag].filename) for tag in tags if tag in listed}
    return [Written(tag, path, recognise(path, catalog), _strength(tags[tag])) for tag, path in paths.items()]


def _strength(params: Any) -> float:
    """Returns the strength that the hosts take from a tag for the network: 1 where it says none, or none that is a number."""
    named, positional = getattr(params, "named", {}), params.positional
    text = named.get("unet") or (positional[2] if len(positional) > 2 else named.get("te") or [*positional, "1"][1])
    try:
        return float(text)
    except ValueError:  # the host says so when the picture is made
        return 1.0


def loras_in(prompts: Sequence[str]) -> list[Written]:
    """Returns the same for prompts; the hosts take a batch's LoRAs from its first."""
    return loras_of(extra_networks.parse_prompt(prompts[0])[1]) if prompts else []


def activate(p: Any, lora: Activation) -> None:
    """Adds the LoRA to the passes whose prompt has neither it nor a few-step LoRA, and activates the first pass's again.

    The hires pass activates its own, from the same lists. After a switch to the refiner A1111 1.10 activates none again, so
    the refiner's steps are without it.
    """
    hires = getattr(p, "hr_extra_network_data", None)
    for data, strength in ((p.extra_network_data, lora.strength), (hires, lora.hires_strength)):
        if data is not None and not _has(loras_of(data), lora.name):
            data.setdefault("lora", []).append(extra_networks.ExtraNetworkParams(items=[lora.name, f"{strength:g}"]))
    with devices.autocast():
        extra_networks.activate(p, p.extra_network_data)


def later_in(p: Any, planned: Collection[str]) -> list[Written]:
    """Returns the few-step LoRAs of a batch's own prompt, and of its hires pass, that are not among the planned ones.

    Args:
        p: the host's processing object, before activate().
        planned: the hosts' names of those that the plan knows of.
    """
    passes = (p.extra_network_data, getattr(p, "hr_extra_network_data", None))
    found = {lora.name: lora for data in passes for lora in few_step_in(loras_of(data))}
    return [lora for name, lora in found.items() if name not in planned]


def _has(loras: Sequence[Written], name: str) -> bool:
    return bool(few_step_in(loras)) or name in [lora.name for lora in loras]
