"""What looks at pictures while a LoRA learns from human feedback: the decoder, the scorers, and a network that sees things."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...errors import TrainingError
from ...rewards.instances import InstanceNet
from ...rewards.scorer import Scorer
from ..data.examples import Examples
from .settings import FeedbackSettings

Decode = Callable[[torch.Tensor], torch.Tensor]


def in_full(like: torch.Tensor) -> AbstractContextManager:
    """Returns the context in which decoders and scorers compute: in their own dtype, whatever a training's precision is."""
    return torch.autocast(like.device.type, enabled=False)


@dataclass(frozen=True)
class Judge:
    """What looks at pictures.

    Args:
        decode: latents [batch, ...] as the network sees them -> pictures [batch, 3, height, width] of about 0 to 1, with a
            gradient.
        scorers: by id, those that are learnt from and the held-out one, frozen, on the network's device.
        instances: sees things in pictures, for the perceptual term.
        decoder: the network that decodes, whose weights are no part of what a step keeps.
    """

    decode: Decode
    scorers: Mapping[str, Scorer]
    instances: InstanceNet | None = None
    decoder: nn.Module | None = None

    @property
    def weights(self) -> list[torch.Tensor]:
        """The weights of all these networks."""
        parts = (*self.scorers.values(), self.instances, self.decoder)
        return [weight for part in parts if part is not None for weight in part.parameters()]

    @property
    def versions(self) -> dict[str, str]:
        """What tells scorers from others of their id, by id; those of which there is only one are left out."""
        return {name: scorer.version for name, scorer in self.scorers.items() if scorer.version}

    @property
    def reads_prompts(self) -> bool:
        """Whether any of the scorers looks at the prompt."""
        return any(scorer.reads_prompt for scorer in self.scorers.values())

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns pictures [batch, 3, height, width] from 0 to 1.

        They are decoded one by one, and what the decoder computes is computed again going back: a decoder keeps gigabytes for
        one large picture.
        """
        with in_full(latents):
            parts = [checkpoint(self.decode, one, use_reentrant=False, preserve_rng_state=False) for one in latents.split(1)]
            return torch.cat(parts).clamp(0, 1)

    @torch.no_grad()
    def scores(self, latents: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Returns what every scorer gives for the pictures of latents, float [batch] on the processor, by id.

        Args:
            latents: [batch, ...] as the network sees them.
            prompts: a text for each of them.
        Raises: RewardError as Scorer.score().
        """
        pictures = self.pictures(latents)
        with in_full(latents):
            return {name: scorer.score(pictures, prompts).cpu() for name, scorer in self.scorers.items()}


def require_judge(settings: FeedbackSettings, judge: Judge | None, examples: Examples) -> None:
    """Refuses feedback without its scorers, or without the prompts that they read.

    Args:
        settings: of the feedback.
        judge: that is given, or None.
        examples: that are trained on.
    Raises: TrainingError saying what is missing.
    """
    wanted = {*settings.rewards, *filter(None, [settings.held_out])}
    missing = wanted - (judge.scorers.keys() if judge else set())
    if judge is None or missing:
        raise TrainingError(f'The objective "feedback" needs its scorers, and {", ".join(sorted(missing))} is not there.')
    if judge.reads_prompts and not all(examples.batch(bucket[:1], 0).prompts for bucket in examples.buckets if bucket):
        raise TrainingError(
            "The rewards read the prompts, and some of these examples have none: take them from Hyper-SD Training Data, which "
            "keeps the texts, or choose a reward that looks at the picture alone."
        )
