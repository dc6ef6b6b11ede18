"""What does a step of score distillation cost? Time and memory beside teacher, student and fake score as three networks.

One command, from the repository root, in an environment with the `train` extra:

    python -m hyper_sd.benchmarks.score_cost --out benchmarks/results/score_cost.json

A step is one update of the fake score and one of the student. Network, batches, turns and clocks are those of training_cost; a
test holds both sides to the same weights.
"""

from torch import nn

from ..training.config import Stage, TrainingConfig
from ..training.diffusion import Diffusion
from ..training.objectives.score_distillation import draw_score
from .card import require_device
from .step_cost import Comparison, comparison_parser, make_examples, next_batch, run_comparison
from .three_networks import ThreeNetworks


class Peer:
    """The three networks, fed with the same batches, noises, timesteps and guidance."""

    def __init__(self, config: TrainingConfig, network: nn.Module, diffusion: Diffusion, device: str):
        self.config, self.examples, self.count = config, make_examples(device), 0
        rates = config.learning_rate, config.fake_learning_rate
        self.three = ThreeNetworks(network, diffusion, config.rank, *rates, config.start_timestep)
        self.held = self.three.held

    def step(self) -> None:
        """Takes one step of both."""
        batch = next_batch(self.examples, self.count, self.config.batch_size)
        shape = tuple(batch.latents.shape)
        draws = [draw_score(self.config, shape, self.count, update).to(batch.latents) for update in (0, 1)]
        self.three.step(batch, *draws)
        self.count += 1


def config_of(rank: int, batch_size: int) -> TrainingConfig:
    """Returns the settings of both sides."""
    stage = Stage(num_segments=1, steps=10**6, distance_weight=0.0, score_weight=1.0)
    return TrainingConfig(stages=(stage,), batch_size=batch_size, rank=rank, warmup_steps=50, fake_updates=1, fake_warmup=0)


COMPARISON = Comparison(
    what="time and memory of a step of score distillation beside teacher, student and fake score as three networks",
    peer="three_networks",
    make_peer=Peer,
    config_of=config_of,
    bars={"weights": 0.45, "time": 1.0},
    ranks=(8,),
)


def main() -> None:
    """Reads the command line, measures, and writes JSON."""
    parser = comparison_parser(COMPARISON, __doc__)
    arguments = parser.parse_args()
    require_device(parser, arguments.device)
    run_comparison(COMPARISON, arguments)


if __name__ == "__main__":
    main()
