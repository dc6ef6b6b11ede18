"""What on_a_card.py runs, one process each, and the bars that its figures are held to."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import sdxl_step, train_lora_cases
from .train_lora_cases import EAGER, OURS, OURS_AGAIN

Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # what every run of an arm has found, by the arm's name
STYLE, STYLE_HOST, STYLE_EAGER = "style", "style, host", "style, eager"
AGAIN, AGAIN_HOST = "style, checkpointing", "style, host, checkpointing"
TSCD, TSCD_AGAIN, SAMPLER, LOADING = "tscd", "tscd, checkpointing", "sampler", "one-step loading"

TRIAL_SECONDS = 600.0  # of an arm with narrow networks, on however slow or busy a processor


@dataclass(frozen=True)
class Arm:
    """One process.

    Args:
        name: of the arm.
        benchmark: its module in this folder.
        options: of the command line.
        needs_comfyui: whether it imports a ComfyUI.
        writes: whether its result is a file, named by --out; else it is the last line of what it prints.
        most_seconds: after which it is ended.
        is_repeated: whether it runs again in further turns.
    """

    name: str
    benchmark: str
    options: tuple[str, ...]
    needs_comfyui: bool = False
    writes: bool = False
    most_seconds: float = 90.0
    is_repeated: bool = False


def arms(narrow: bool, device: str, with_comfyui: bool) -> list[Arm]:
    """Returns what is run, the most important first, because the time may end before the list does.

    Args:
        narrow: whether the networks have a few channels only.
        device: "cpu" or "cuda".
        with_comfyui: whether there is a ComfyUI; without one, the style's steps are taken without a host's node.
    """
    on, case = ("--device", device), "sdxl narrow" if narrow else "sdxl"

    def node(name: str, side: str, batch: str = "", is_repeated: bool = False) -> Arm:
        return Arm(name, "train_lora", (*on, "--run", case + batch, side), needs_comfyui=True, is_repeated=is_repeated)

    def way(name: str) -> Arm:
        return Arm(
            name, "training_cost", (*on, "--sdxl", "narrow" if narrow else "full", "--way", name), is_repeated=name == TSCD
        )

    eager = [node(STYLE_EAGER, EAGER)] if train_lora_cases.has_graphs() else []
    repeats, turns = ("5", "4") if narrow else ("100", "20")
    planned = [
        Arm(SAMPLER, "sampler_overhead", (*on, "--repeats", repeats), needs_comfyui=True, writes=True),
        node(STYLE, OURS, is_repeated=True),
        node(STYLE_HOST, "bf16", is_repeated=True),
        way(TSCD),
        node(AGAIN, OURS_AGAIN),
        node(AGAIN_HOST, "bf16, checkpointing"),
        *eager,
        *([way("tscd, eager")] if sdxl_step.has_graphs() else []),
        way(TSCD_AGAIN),
        node("style, batch 4", OURS, ", batch 4"),
        node("style, host, batch 4 accumulated", "bf16, accumulated", ", batch 4"),
        Arm("three copies", "training_cost", (*on, "--rank", "8", "--turns", turns), writes=True),
    ]
    if not narrow:  # the released file's shapes are what the loaders know
        options = (*on, "--only", "0", "--rounds", "2", "--sparse")
        planned.append(Arm(LOADING, "one_step_load", options, needs_comfyui=True, writes=True, most_seconds=120.0))
    planned += [] if with_comfyui else [way("finetune"), way("finetune, batch 4")]
    return [replace(arm, most_seconds=TRIAL_SECONDS) for arm in planned] if narrow else planned


def bars(runs: Runs) -> list[dict[str, Any]]:
    """Returns every bar with its limit, what was found (None where it was not measured) and whether it is met."""
    rows = [
        _row("style step: time beside the host's node", 0.4, _ratio(runs, STYLE, STYLE_HOST, "wall")),
        _row("style step: growth beside the host's node", 1.0, _ratio(runs, STYLE, STYLE_HOST, "growth")),
        _row("style step, checkpointing: growth beside the host's node", 1.0, _ratio(runs, AGAIN, AGAIN_HOST, "growth")),
        _row("style: time before the first step beside the host's node", 1.0, _ratio(runs, STYLE, STYLE_HOST, "until_first")),
        _row(
            "style: time until steps take their usual time beside the host's node",
            1.0,
            _ratio(runs, STYLE, STYLE_HOST, "until_usual"),
        ),
        _row("TSCD step: share of its time that the card works", 0.8, _median(runs, TSCD, "work", "busy_share"), at_least=True),
    ]
    for name in (STYLE, AGAIN, TSCD, TSCD_AGAIN):
        rows.append(
            _row(f"{name}: memory said before beside what it grew by, how far from 1", 0.15, _error_of_estimate(runs, name))
        )
    sampler = ("devices", "cuda")
    waits = _found(runs, SAMPLER, *sampler, "samplers", "hyper_sd_tcd", "waits_for_cuda")
    loading = _found(runs, LOADING, "cases")
    return [
        *rows,
        _row("sampler: waits for the card", 0, max(map(int, waits)) if waits else None),
        _row("sampler: time per step beside lcm", 1.3, _median(runs, SAMPLER, *sampler, "ratio_to_lcm", "median")),
        _row("one-step loading: time beside the host's", 1.05, loading[0][0]["time_ratio"] if loading else None),
        _row("one-step loading: peak beside the host's", 1.0, loading[0][0]["peak_rss_ratio"] if loading else None),
    ]


def _row(what: str, limit: float, found: float | None, at_least: bool = False) -> dict[str, Any]:
    met = None if found is None else bool(found >= limit if at_least else found <= limit)
    shown = None if found is None else round(found, 3)
    return {"what": what, "limit": limit, "is": "at least" if at_least else "at most", "found": shown, "met": met}


def _found(runs: Runs, arm: str, *keys: str) -> list[Any]:
    """Returns the values at a path of keys in every run of an arm that has them."""
    values: list[Any] = list(runs.get(arm, ()))
    for key in keys:
        values = [value[key] for value in values if isinstance(value, Mapping) and key in value]
    return [value for value in values if value is not None]


def _median(runs: Runs, arm: str, *keys: str) -> float | None:
    values = _found(runs, arm, *keys)
    return statistics.median(values) if values else None


def _ratio(runs: Runs, ours: str, host: str, key: str) -> float | None:
    own, theirs = _median(runs, ours, key), _median(runs, host, key)
    return own / theirs if own is not None and theirs else None


def _error_of_estimate(runs: Runs, arm: str) -> float | None:
    said, grown = _median(runs, arm, "said"), _median(runs, arm, "growth")
    return abs(said / grown - 1) if said is not None and grown else None
