"""What does a distillation step cost? Time and memory beside the usual teacher + student + target in three copies.

One command, from the repository root, in an environment with the `train` extra:

    python -m hyper_sd.benchmarks.training_cost --out benchmarks/results/training_cost.json

Both train a LoRA of the same rank on the same layers of the same random network, the demo model's UNet, on the same batches and
draws, with the same loss; only how networks are kept and asked differs, and a test holds them to the same weights. They take
turns, one step each, the first one alternating, and the ratio is taken within a turn, where a busy machine slows both alike. On
the CPU the clock is the process's own processor time, on CUDA the wall clock to the end of the work. Peaks are those of
a process of their own each.

With --sdxl full the network is SDXL's UNet with random weights, at 1024 px and the rank of the preset "Thorough", too large for
three copies: our own ways to take a step are compared, each in a process of its own, with and without gradient checkpointing,
and without CUDA graphs. --sdxl narrow has the same blocks with a few channels, for a machine without a card.
"""

import argparse

from torch import nn

from ..training.config import Stage, TrainingConfig
from ..training.diffusion import Diffusion
from ..training.objectives.draws import draw_step
from .card import require_device
from .measure import hand_over, start_logging, write_result
from .sdxl_step import WAYS, report_of_ways, step_once
from .step_cost import Comparison, comparison_parser, make_examples, next_batch, run_comparison
from .three_copies import ThreeCopies


class Peer:
    """The three copies, fed with the same batches, timesteps and guidance."""

    def __init__(self, config: TrainingConfig, network: nn.Module, diffusion: Diffusion, device: str):
        self.config, self.examples, self.count = config, make_examples(device), 0
        self.three = ThreeCopies(network, diffusion, config.rank, config.learning_rate, config.ema_decay, config.huber_c)
        self.held = self.three.held

    def step(self) -> None:
        """Takes one optimizer step."""
        batch = next_batch(self.examples, self.count, self.config.batch_size)
        draws = draw_step(self.config, self.config.stages[0], tuple(batch.latents.shape), self.count).to(batch.latents)
        self.three.step(batch, draws)
        self.count += 1


def config_of(rank: int, batch_size: int) -> TrainingConfig:
    """Returns the settings of both sides."""
    return TrainingConfig(stages=(Stage(num_segments=8, steps=10**6),), batch_size=batch_size, rank=rank, warmup_steps=50)


COMPARISON = Comparison(
    what="time and memory of a distillation step beside teacher, student and target in three copies",
    peer="three_copies",
    make_peer=Peer,
    config_of=config_of,
    bars={"weights": 0.6, "time": 1.0},
    ranks=(8, 64),
)


def run_sdxl(arguments: argparse.Namespace) -> None:
    """Measures the ways to take a step of SDXL, or as a child process one of them."""
    if arguments.way:
        hand_over(step_once(arguments.way, narrow=arguments.sdxl == "narrow", device=arguments.device))
        return
    start_logging()
    write_result(report_of_ways(arguments.device), arguments.out)


def main() -> None:
    """Reads the command line, measures, and writes JSON."""
    parser = comparison_parser(COMPARISON, __doc__)
    parser.add_argument("--sdxl", choices=("full", "narrow"), help="our own ways to take a step, on SDXL's UNet")
    parser.add_argument("--way", choices=list(WAYS), help="one of them alone, whose figures are written to stdout")
    arguments = parser.parse_args()
    require_device(parser, arguments.device)
    if arguments.sdxl:
        run_sdxl(arguments)
    else:
        run_comparison(COMPARISON, arguments)


if __name__ == "__main__":
    main()
