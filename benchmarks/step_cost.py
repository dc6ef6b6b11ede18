"""What benchmarks of a training step's cost share: our side of the comparison, turns, memory, and the command line."""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..samplers.schedule import NoiseSchedule
from ..training.config import TrainingConfig
from ..training.data.examples import Batch, LatentExamples
from ..training.denoiser import Denoiser
from ..training.diffusion import Diffusion
from ..training.engine import LocalEngine
from ..training.launch.embedded_model import build_unet, load_config
from ..training.lora_layers import LoraLayers
from ..training.run import Run
from .card import add_device_option
from .measure import (
    MIB,
    command_line,
    hand_over,
    logger,
    machine,
    memory,
    ratios_of,
    run_again,
    seconds_of,
    spread,
    start_logging,
    take_turns,
    versions,
    write_result,
)

OURS = "hyper_sd"
COUNT, TOKENS = 64, 77  # examples; tokens of a prompt


class Side(Protocol):
    """One of the two that are compared."""

    def step(self) -> None:
        """Takes one optimizer step."""

    def held(self) -> Iterable[torch.Tensor]:
        """Yields every tensor that is kept between two steps."""


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Args:
        what: the comparison in words, for the result.
        peer: name of the other side.
        make_peer: (config, network, diffusion, device) -> the other side.
        config_of: (rank, batch size) -> settings of both sides.
        bars: "weights" and "time", at most this many times the other side's.
        ranks: of the LoRA, that are measured by default.
    """

    what: str
    peer: str
    make_peer: Callable[[TrainingConfig, nn.Module, Diffusion, str], Side]
    config_of: Callable[[int, int], TrainingConfig]
    bars: dict[str, float]
    ranks: tuple[int, ...]

    @property
    def sides(self) -> tuple[str, str]:
        """The names of both."""
        return OURS, self.peer

    def make(self, name: str, rank: int, batch_size: int, device: str) -> Side:
        """Returns one of the two, on a network of its own."""
        diffusion = Diffusion.from_schedule(NoiseSchedule.from_betas())
        maker = Ours if name == OURS else self.make_peer
        return maker(self.config_of(rank, batch_size), make_network().to(device), diffusion, device)


def make_network() -> nn.Module:
    """Returns the demo model's UNet, untrained: 11 million weights, SD1.5's layout."""
    torch.manual_seed(0)
    return build_unet(load_config()).eval().requires_grad_(False)


def make_examples(device: str) -> LatentExamples:
    """Returns random latents and prompts of the demo model's shapes, on the device that trains."""
    g = torch.Generator().manual_seed(0)
    width = load_config()["unet"]["context_dim"]
    context, empty = (torch.randn(n, TOKENS, width, generator=g).to(device) for n in (COUNT, 1))
    return LatentExamples(torch.randn(COUNT, 4, 16, 16, generator=g).to(device), {"context": context}, {"context": empty})


def next_batch(examples: LatentExamples, count: int, size: int) -> Batch:
    """Returns the batch of step `count`, from 0, of `size` examples in turn."""
    return examples.batch([(count * size + i) % COUNT for i in range(size)], 0)


class Ours:
    """The training package's own run, without checkpoints."""

    def __init__(self, config: TrainingConfig, network: nn.Module, diffusion: Diffusion, device: str):
        self.network, self.layers = network, LoraLayers(network, config.rank)
        self.run = Run(config, Denoiser(network, diffusion), self.layers, make_examples(device), LocalEngine(device), None)

    def step(self) -> None:
        """Takes one optimizer step."""
        with torch.enable_grad():
            self.run.advance()

    def held(self) -> Iterator[torch.Tensor]:
        """Yields every tensor that is kept between two steps."""
        yield from self.network.parameters()
        yield from self.network.buffers()
        for made in self.layers.sets.values():
            yield from made.parameters()
        for optimizer in filter(None, (self.run.optimizer, self.run.fake_optimizer)):
            yield from (value for state in optimizer.state.values() for value in state.values())

    def lora_weights(self) -> int:
        """Returns how many values the LoRA has."""
        return sum(p.numel() for p in self.layers.sets["student"].parameters())


def megabytes(tensors: Iterable[torch.Tensor]) -> float:
    """Returns the bytes of distinct tensors, in MiB."""
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor)}
    return sum(seen.values()) / MIB


def measure(comparison: Comparison, rank: int, batch_size: int, turns: int, device: str) -> dict[str, Any]:
    """Takes `turns` steps of both in turn; returns milliseconds, ratios and the memory of what is held."""
    both = {name: comparison.make(name, rank, batch_size, device) for name in comparison.sides}
    taken = take_turns({name: lambda side=side: seconds_of(side.step, device) for name, side in both.items()}, turns, warm_up=3)
    times, walls = ({name: [1e3 * pair[clock] for pair in pairs] for name, pairs in taken.items()} for clock in (0, 1))
    held = {name: round(megabytes(each.held()), 2) for name, each in both.items()}
    network, lora = sum(p.numel() for p in both[OURS].network.parameters()), both[OURS].lora_weights()
    return {
        "rank": rank, "network_weights": network, "lora_weights": lora, "lora_share": round(lora / network, 3),
        "milliseconds_per_step": {name: spread(values, 1) for name, values in times.items()},
        "wall_milliseconds_per_step": {name: spread(values, 1) for name, values in walls.items()},
        "ratio_of_time": spread(ratios_of(times[OURS], times[comparison.peer]), 3),
        "ratio_of_wall_time": spread(ratios_of(walls[OURS], walls[comparison.peer]), 3),
        "held_mib": held, "ratio_of_held": round(held[OURS] / held[comparison.peer], 3),
    }  # fmt: skip


def peak(comparison: Comparison, name: str, rank: int, batch_size: int, device: str) -> float | None:
    """Returns the MiB that building one of the two and five steps take at most, the network included.

    To be called in a process of its own.

    Args:
        comparison: what is compared.
        name: of the side.
        rank: of the LoRA.
        batch_size: examples in a step.
        device: "cpu" or "cuda".
    Returns: None where the system does not tell.
    """
    before = torch.cuda.memory_allocated() if device == "cuda" else memory().get("rss")
    trained = comparison.make(name, rank, batch_size, device)
    for _ in range(5):
        trained.step()
    after = torch.cuda.max_memory_allocated() if device == "cuda" else memory().get("highest")
    return None if before is None or after is None else round((after - before) / MIB, 1)


def report(comparison: Comparison, arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    """Measures every rank and returns the whole result."""
    results = []
    for rank in arguments.rank:
        result = measure(comparison, rank, arguments.batch_size, arguments.turns, device)
        options = ["--rank", str(rank), "--batch-size", str(arguments.batch_size)]
        # each peak from a new process
        result["peak_mib"] = {name: run_again("--peak-of", name, *options)["peak_mib"] for name in comparison.sides}
        passed = {
            "weights": result["ratio_of_held"] <= comparison.bars["weights"],
            "time": result["ratio_of_time"]["median"] <= comparison.bars["time"],
        }
        results.append(result | {"within_bars": passed})
        logger.info("rank %d: %s", rank, json.dumps(results[-1], indent=2))
    return {
        "what": comparison.what,
        "batch_size": arguments.batch_size, "turns": arguments.turns, "bars": comparison.bars, "device": device,
        "versions": versions(), "machine": machine(),
        "results": results,
    }  # fmt: skip


def comparison_parser(comparison: Comparison, document: str) -> argparse.ArgumentParser:
    """Returns the command line of a comparison.

    Args:
        comparison: what is compared.
        document: the docstring of the benchmark's module.
    """
    parser = command_line(document)
    add_device_option(parser)
    named = " and ".join(map(str, comparison.ranks))
    parser.add_argument("--rank", type=int, nargs="+", default=list(comparison.ranks), help=f"of the LoRA; default {named}")
    parser.add_argument("--batch-size", type=int, default=8, help="examples in a step; default %(default)s")
    parser.add_argument("--turns", type=int, default=60, help="steps of each; more against a busy machine")
    parser.add_argument("--peak-of", choices=comparison.sides, help=argparse.SUPPRESS)
    return parser


def run_comparison(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Measures, and writes JSON.

    Args:
        comparison: what is compared.
        arguments: of the command line, as comparison_parser() reads it.
    """
    device = arguments.device
    if arguments.peak_of:
        hand_over({"peak_mib": peak(comparison, arguments.peak_of, arguments.rank[0], arguments.batch_size, device)})
        return
    start_logging()
    write_result(report(comparison, arguments, device), arguments.out)
