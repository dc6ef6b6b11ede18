"""The figures of train_lora.py: what a step took, what was trained, and the ratios within the turns."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .measure import MIB


def trained(lora: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Returns how many modules a LORA_MODEL changes and how many values were trained for it."""
    parts = (".lora_down.weight", ".lora_up.weight", ".diff_b", ".diff")
    named = {name: next((part for part in parts if name.endswith(part)), None) for name in lora}
    values = {name: part for name, part in named.items() if part}
    return {
        "modules": len({name.removesuffix(part) for name, part in values.items()}),
        "parameters": sum(lora[name].numel() for name in values),
    }


def ratios(ours: Sequence[Mapping[str, float]], hosts: Sequence[Sequence[Mapping[str, float]]], figure: str) -> dict[str, Any]:
    """Returns ours / the least of these hosts' in each turn, and the median."""
    least = [min(run[figure] for run in turn) for turn in zip(*hosts, strict=True)]
    each = [run[figure] / other for run, other in zip(ours, least, strict=True)]
    return {"each": [round(ratio, 3) for ratio in each], "median": round(statistics.median(each), 3)}


def in_mib(number: int | None) -> float | None:
    """Returns bytes in MiB, rounded; None stays."""
    return None if number is None else round(number / MIB, 1)


def figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one side's figures of all turns."""
    written = [seconds for run in runs for seconds in run["checkpoints"]]
    middle = {name: statistics.median(run[name] for run in runs) for name in ("wall", "cpu", "growth", "peak", "before_first")}
    return {
        "step_seconds": round(middle["wall"], 4), "step_seconds_each": [round(run["wall"], 4) for run in runs],
        "step_processor_seconds": round(middle["cpu"], 4), "seconds_to_first_step_done": round(middle["before_first"], 2),
        "growth_mib": round(middle["growth"] / MIB, 1), "growth_mib_each": [round(run["growth"] / MIB, 1) for run in runs],
        "whole_peak_mib": round(middle["peak"] / MIB, 1), "rows_per_step": runs[0]["rows"],
        "modules": runs[0]["modules"], "parameters": runs[0]["parameters"],
        "seconds_until_first_step": round(statistics.median(run["until_first"] for run in runs), 2),
        "seconds_until_usual_steps": round(statistics.median(run["until_usual"] for run in runs), 2),
        "step_seconds_spread": [run["walls"] for run in runs], "measured_steps": runs[0]["measured_steps"],
        "said_mib": in_mib(runs[0]["said"]), "reserved_growth_mib": in_mib(runs[0]["reserved"]), "work": runs[0]["work"],
        "gradient_checkpointing": runs[0]["gradient_checkpointing"], "messages": runs[0]["messages"],
        "seconds_per_checkpoint": round(statistics.median(written), 4) if written else None,
    }  # fmt: skip
