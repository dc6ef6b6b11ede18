"""PickScore: which of two pictures people would pick for a text, learnt from their choices."""

import torch

from .clip import VIT_H_14, TwoTowers


class PickScore(TwoTowers):
    """PickScore 1: the cosine of picture and text times the learnt scale, about 17 to 26.

    The paper of Hyper-SD gives values such as .232, which are the plain cosine: cosine(images, prompts) returns that.

    Source: Kirstain et al., "Pick-a-Pic", arXiv 2305.01569.
    """

    towers, weights = VIT_H_14, "reward-pick-score"

    def rate(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Returns exp(logit_scale) times the cosine, [batch]."""
        return self.model.logit_scale.exp() * self.cosine(images, prompts)
