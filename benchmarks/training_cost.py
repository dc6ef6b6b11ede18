"""What does a distillation step cost? Time and memory beside the usual teacher + student + target in three copies.

One command, from the repository root, in an environment with the `train` extra:

    python -m hyper_sd.benchmarks.training_cost --out benchmarks/results/training_cost.json

Both train a LoRA of the same rank on the same layers of the same random network, the demo model's UNet, on the same batches and
draws, with the same loss; only how networks are kept and asked differs, and a test holds them to the same weights. They take
turns, one step each, the first one alternating, and the ratio is taken within a turn, where a busy machine slows both alike. On
the CPU the clock is the process's own processor time, on CUDA the wall clock to the end of the work. Peaks are those of
a process of their own each.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..samplers.schedule import NoiseSchedule
from ..training.config import Stage, TrainingConfig
from ..training.data.examples import Batch, LatentExamples
from ..training.denoiser import Denoiser
from ..training.diffusion import Diffusion
from ..training.engine import LocalEngine
from ..training.launch.embedded_model import build_unet, load_config
from ..training.lora_layers import LoraLayers
from ..training.objectives.draws import draw_step
from ..training.run import Run
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
from .three_copies import ThreeCopies

OURS, PEER = "hyper_sd", "three_copies"
BARS = {"weights": 0.6, "time": 1.0}  # at most this many times the three copies
COUNT, TOKENS = 64, 77  # examples; tokens of a prompt


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


class Ours:
    """The training package's own run, without checkpoints."""

    def __init__(self, config: TrainingConfig, network: nn.Module, diffusion: Diffusion, device: str):
        self.network, self.layers = network, LoraLayers(network, config.rank)
        self.run = Run(config, Denoiser(network, diffusion), self.layers, make_examples(device), LocalEngine(device), None)

    def step(self) -> None:
        """Takes one optimizer step."""
        with torch.enable_grad():
            self.run.advance()

    def held(self) -> Iterable[torch.Tensor]:
        """Yields every tensor that is kept between two steps."""
        yield from self.network.parameters()
        yield from self.network.buffers()
        for made in self.layers.sets.values():
            yield from made.parameters()
        yield from (value for state in self.run.optimizer.state.values() for value in state.values())

    def lora_weights(self) -> int:
        """Returns how many values the LoRA has."""
        return sum(p.numel() for p in self.layers.sets["student"].parameters())


class Peer:
    """The three copies, fed with the same batches, timesteps and guidance."""

    def __init__(self, config: TrainingConfig, network: nn.Module, diffusion: Diffusion, device: str):
        self.config, self.examples, self.count = config, make_examples(device), 0
        self.three = ThreeCopies(network, diffusion, config.rank, config.learning_rate, config.ema_decay, config.huber_c)
        self.held = self.three.held

    def step(self) -> None:
        """Takes one optimizer step."""
        size = self.config.batch_size
        numbers = [(self.count * size + i) % COUNT for i in range(size)]
        batch: Batch = self.examples.batch(numbers, 0)
        draws = draw_step(self.config, self.config.stages[0], tuple(batch.latents.shape), self.count).to(batch.latents)
        self.three.step(batch, draws)
        self.count += 1


MAKERS: dict[str, Callable[..., Ours | Peer]] = {OURS: Ours, PEER: Peer}


def make(name: str, rank: int, batch_size: int, device: str) -> Ours | Peer:
    """Returns one of the two, on a network of its own."""
    stages = (Stage(num_segments=8, steps=10**6),)
    config = TrainingConfig(stages=stages, batch_size=batch_size, rank=rank, warmup_steps=50)
    diffusion = Diffusion.from_schedule(NoiseSchedule.from_betas())
    return MAKERS[name](config, make_network().to(device), diffusion, device)


def megabytes(tensors: Iterable[torch.Tensor]) -> float:
    """Returns the bytes of distinct tensors, in MiB."""
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor)}
    return sum(seen.values()) / MIB


def measure(rank: int, batch_size: int, turns: int, device: str) -> dict[str, Any]:
    """Takes `turns` steps of both in turn; returns milliseconds, ratios and the memory of what is held."""
    both = {name: make(name, rank, batch_size, device) for name in MAKERS}
    taken = take_turns({name: lambda side=side: seconds_of(side.step, device) for name, side in both.items()}, turns, warm_up=3)
    times, walls = ({name: [1e3 * pair[clock] for pair in pairs] for name, pairs in taken.items()} for clock in (0, 1))
    held = {name: round(megabytes(each.held()), 2) for name, each in both.items()}
    network, lora = sum(p.numel() for p in both[OURS].network.parameters()), both[OURS].lora_weights()
    return {
        "rank": rank, "network_weights": network, "lora_weights": lora, "lora_share": round(lora / network, 3),
        "milliseconds_per_step": {name: spread(values, 1) for name, values in times.items()},
        "wall_milliseconds_per_step": {name: spread(values, 1) for name, values in walls.items()},
        "ratio_of_time": spread(ratios_of(times[OURS], times[PEER]), 3),
        "ratio_of_wall_time": spread(ratios_of(walls[OURS], walls[PEER]), 3),
        "held_mib": held, "ratio_of_held": round(held[OURS] / held[PEER], 3),
    }  # fmt: skip


def peak(name: str, rank: int, batch_size: int, device: str) -> float | None:
    """Returns the MiB that building one of the two and five steps take at most, the network included.

    To be called in a process of its own.

    Args:
        name: one of MAKERS.
        rank: of the LoRA.
        batch_size: examples in a step.
        device: "cpu" or "cuda".
    Returns: None where the system does not tell.
    """
    before = torch.cuda.memory_allocated() if device == "cuda" else memory().get("rss")
    trained = make(name, rank, batch_size, device)
    for _ in range(5):
        trained.step()
    after = torch.cuda.max_memory_allocated() if device == "cuda" else memory().get("highest")
    return None if before is None or after is None else round((after - before) / MIB, 1)


def peaks(rank: int, batch_size: int) -> dict[str, float | None]:
    """Returns peak() of both, each from a new process."""
    options = ["--rank", str(rank), "--batch-size", str(batch_size)]
    return {name: run_again("--peak-of", name, *options)["peak_mib"] for name in MAKERS}


def report(arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    """Measures every rank and returns the whole result."""
    results = []
    for rank in arguments.rank:
        result = measure(rank, arguments.batch_size, arguments.turns, device)
        result["peak_mib"] = peaks(rank, arguments.batch_size)
        passed = {
            "weights": result["ratio_of_held"] <= BARS["weights"],
            "time": result["ratio_of_time"]["median"] <= BARS["time"],
        }
        results.append(result | {"within_bars": passed})
        logger.info("rank %d: %s", rank, json.dumps(results[-1], indent=2))
    return {
        "what": "time and memory of a distillation step beside teacher, student and target in three copies",
        "batch_size": arguments.batch_size, "turns": arguments.turns, "bars": BARS, "device": device,
        "versions": versions(), "machine": machine(),
        "results": results,
    }  # fmt: skip


def main() -> None:
    """Reads the command line, measures, and writes JSON."""
    parser = command_line(__doc__)
    parser.add_argument("--rank", type=int, nargs="+", default=[8, 64], help="of the LoRA; default 8 and 64")
    parser.add_argument("--batch-size", type=int, default=8, help="examples in a step; default %(default)s")
    parser.add_argument("--turns", type=int, default=60, help="steps of each; more against a busy machine")
    parser.add_argument("--peak-of", choices=list(MAKERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.peak_of:
        hand_over({"peak_mib": peak(arguments.peak_of, arguments.rank[0], arguments.batch_size, device)})
        return
    start_logging()
    write_result(report(arguments, device), arguments.out)


if __name__ == "__main__":
    main()
