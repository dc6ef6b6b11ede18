"""The settings of a training run as JSON or TOML values, and back, and what may differ between two parts of one run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..errors import TrainingError
from .checks import two_numbers
from .config import OPTIMIZERS, Stage, TrainingConfig
from .feedback.settings import feedback_from_plain, feedback_to_plain

FREE_TO_CHANGE = {"checkpoint_every", "gradient_checkpointing", "accumulation", "cuda_graphs"}  # between two parts of one run
# What only stages for one step read. Other runs leave them out of their settings, so that those begun before go on.
OF_ONE_STEP = ("start_timestep", "fake_learning_rate", "fake_updates", "fake_warmup", "pairs", "pair_steps")


def to_plain(config: TrainingConfig) -> dict[str, Any]:
    """Returns the settings as JSON values."""
    plain = dataclasses.asdict(config)
    has_one_step = any(stage.is_one_step for stage in config.stages)
    kept = {name: value for name, value in plain.items() if has_one_step or name not in OF_ONE_STEP}
    if config.optimizer == OPTIMIZERS[0]:  # left out, so that runs begun before there was a choice go on
        del kept["optimizer"]
    del kept["feedback"]
    if config.feedback is not None:
        kept["feedback"] = feedback_to_plain(config.feedback)
    stages = [{k: v for k, v in s.items() if v or k not in ("score_weight", "pair_weight")} for s in plain["stages"]]
    return kept | {"stages": stages, "guidance_scale": list(config.guidance_scale)}


def from_plain(values: Mapping[str, Any]) -> TrainingConfig:
    """Returns the settings of a JSON or TOML table.

    Raises: TrainingError for unknown or missing names.
    """
    known = {f.name for f in dataclasses.fields(TrainingConfig)}
    stage_known = {f.name for f in dataclasses.fields(Stage)}
    stages = values.get("stages")
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, Mapping) for stage in stages):
        raise TrainingError("The settings need a list of stages, for example [{num_segments = 8, steps = 1000}].")
    unknown = (values.keys() - known) | set().union(*(set(s) - stage_known for s in stages))
    if unknown:
        raise TrainingError(
            f"Unknown settings {sorted(unknown)}; there are {sorted(known)}, and per stage {sorted(stage_known)}."
        )
    try:
        settings = {**values, "stages": tuple(Stage(**s) for s in stages)}
        if "guidance_scale" in settings:
            settings["guidance_scale"] = two_numbers("guidance_scale", settings["guidance_scale"], "[2.0, 9.0]")
        if "feedback" in settings:
            settings["feedback"] = feedback_from_plain(settings["feedback"])
        return TrainingConfig(**settings)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"The settings do not fit: {error}.") from error


def differences(config: TrainingConfig, saved: Mapping[str, Any]) -> list[str]:
    """Returns the settings that differ from those of a saved run and must not.

    Args:
        config: of the run.
        saved: of the saved run, as to_plain() gave them.
    """
    own, saved = ({"optimizer": OPTIMIZERS[0], **values} for values in (to_plain(config), saved))
    return [
        f"{name}: {saved.get(name)} then, {value} now"
        for name, value in own.items()
        if saved.get(name) != value and name not in FREE_TO_CHANGE
    ]
