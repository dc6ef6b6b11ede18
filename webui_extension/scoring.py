"""Scores the pictures of one job: the scorer is read with the first one, and lies on the card only while it is needed."""

import numpy as np
import torch
from modules import devices
from PIL import Image

from ..errors import RewardError
from ..models.host_folders import REWARDS
from ..rewards.scorer import Scorer, score_all
from ..rewards.table import BOTH, load, require_files, scorer_kind
from . import host, host_models

WORK = 2**29  # bytes that the card needs beside the weights for one picture


def require(scorer_id: str) -> None:
    """Refuses a scorer whose files are not there.

    Raises: RewardError saying how they are had.
    """
    require_files(scorer_id, host_models.model_folders(REWARDS))


def problem_of(scorer_id: str) -> str:
    """Returns what a scorer lacks and how it is had, "" where it can be used."""
    try:
        require(scorer_id)
    except RewardError as error:
        return str(error)
    return ""


class Scoring:
    """One scorer, from a job's first picture to its end.

    Args:
        scorer_id: a key of rewards.table.SCORERS.
    """

    def __init__(self, scorer_id: str):
        self.kind = scorer_kind(scorer_id)
        self.notice = ""  # what the person has to know of how it went
        self._device = torch.device(devices.device)
        self._scorer: Scorer | None = None

    def score(self, picture: Image.Image, prompt: str) -> float:
        """Returns a picture's score. Where the card has too little memory, the processor does the work from then on.

        Args:
            picture: of 8 pixels or more a side.
            prompt: what was asked for, in plain words.
        Raises: RewardError as rewards.table.load() and Scorer.score(); RuntimeError, MemoryError and OSError of the machine.
        """
        try:
            return self._score(picture, prompt)
        except torch.cuda.OutOfMemoryError:
            if self._device.type == "cpu":
                raise
        self.leave_card()
        self._device = torch.device("cpu")
        self.notice = (
            f"Hyper-SD: the card has too little memory for {self.kind.title}, so the processor scores the pictures, which "
            "takes longer. CLIP score needs the least."
        )
        return self._score(picture, prompt)

    def _score(self, picture: Image.Image, prompt: str) -> float:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0)[None].float() / 255
        scorer = self._on_device()
        return score_all(scorer, pixels, [prompt if self.kind.reads == BOTH else ""]).item()

    def _on_device(self) -> Scorer:
        if self._scorer is None:
            with torch.random.fork_rng(devices=[]):  # making a network draws numbers that the next picture may need
                self._scorer = load(self.kind.id, host_models.model_folders(REWARDS))
            self.notice = self._scorer.notice and f"Hyper-SD: {self._scorer.notice}"
        held = [*self._scorer.parameters(), *self._scorer.buffers()]
        if self._device.type != "cpu" and any(tensor.device.type == "cpu" for tensor in held):
            host.make_room(sum(tensor.numel() * tensor.element_size() for tensor in held) + WORK)
            self._scorer.to(self._device)
        return self._scorer

    def leave_card(self) -> None:
        """Makes room on the card for the next batch. The scorer stays in the processor's memory."""
        if self._scorer is not None and self._device.type != "cpu":
            self._scorer.to("cpu")
            devices.torch_gc()

    def release(self) -> None:
        """Forgets the scorer."""
        if self._scorer is not None:
            self._scorer = None
            devices.torch_gc()
