"""How much memory looking at pictures takes in a step of human feedback, measured on small ones before it starts."""

from collections.abc import Sequence

import torch

from ..kept import Ledger
from ..probes import Activations, at_area
from .judge import Judge


def judged(judge: Judge, shape: Sequence[int], device: torch.device) -> Activations:
    """Returns the bytes that decoding, which is done picture by picture, and scoring keep for the backward pass.

    Args:
        judge: that looks.
        shape: of the latents, [.., channels, height, width]; only these three count.
        device: of the network.
    """
    channels, height, width = shape[-3:]

    def measure(*sides: int) -> torch.Tensor:
        latents = torch.zeros(1, channels, *sides, device=device, requires_grad=True)
        decoding, scoring = Ledger(judge.weights), Ledger(judge.weights)
        with torch.enable_grad():
            with decoding.watching(()):
                picture = judge.decode(latents)
            seen = picture.detach().clamp(0, 1).requires_grad_()
            with scoring.watching(()):
                for scorer in judge.scorers.values():
                    scorer.score(seen, [""])
                if judge.instances is not None:
                    judge.instances(seen)
        return torch.stack([decoding.sums(0, ())[0], scoring.sums(0, ())[0] + picture.nbytes])

    decoded, scored = at_area(measure, height, width)
    return Activations(round(float(decoded)), round(float(scored)))
