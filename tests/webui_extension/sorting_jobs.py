"""Jobs of six pictures whose order by the embedded quality score is known."""

import numpy as np
import torch
from hyper_sd.rewards.table import SCORERS
from hyper_sd.tests.webui_extension.stub_run import Processing
from hyper_sd.webui_extension.settings_table import SCORE_KEY, TABLE, Settings
from PIL import Image

SHARES = [0.25, 0.05, 0.45, 0.0, 0.35, 0.15]  # of noise: the quality score falls with it
BEST = [3, 1, 5, 0, 4, 2]
QUALITY = SCORERS["embedded_quality"].title


def panel(sort_by: str = "embedded_quality", **more) -> list:
    """Returns the page's values."""
    return [{**Settings().__dict__, "sort_by": sort_by, **more}[spec.name] for spec in TABLE]


def job_of(**given) -> Processing:
    """Returns a job of six pictures in three batches."""
    return Processing(**{"args": panel(), "batch_size": 2, "n_iter": 3, "seed": 40, **given})


def values(texts: list[str]) -> list[float]:
    """Returns the scores in infotexts."""
    return [float(text.partition(f"{SCORE_KEY}: ")[2].partition(" (")[0]) for text in texts]


def ids(things: list) -> list[int]:
    """Returns which objects these are, in their order."""
    return [id(thing) for thing in things]


def pixels(picture: Image.Image) -> torch.Tensor:
    """Returns a picture as scorers take it."""
    return torch.from_numpy(np.array(picture)).movedim(-1, 0)[None].float() / 255
