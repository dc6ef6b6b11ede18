"""What train_lora.py compares: models and data, our sides and the host's, and the settings of each."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..training.preset_table import PRESETS
from ..training.presets import TrainRequest

OURS, OURS_AGAIN, EAGER = "ours", "ours, checkpointing", "ours, eager"
FP32 = {"training_dtype": "fp32", "lora_dtype": "fp32", "gradient_checkpointing": False}
BF16 = {"training_dtype": "bf16", "lora_dtype": "bf16", "gradient_checkpointing": False}
ACCUMULATED = {"batch_size": 1, "grad_accumulation_steps": None}  # as many as the batch
HOSTS: dict[str, dict[str, Any]] = {
    "plain": FP32,
    "checkpointing": FP32 | {"gradient_checkpointing": True},
    "accumulated": FP32 | ACCUMULATED,
    "defaults": BF16 | {"gradient_checkpointing": True},
    "bf16": BF16,
    "bf16, checkpointing": BF16 | {"gradient_checkpointing": True},
    "bf16, accumulated": BF16 | ACCUMULATED,
}
PAIRS = {
    "plain": OURS, "checkpointing": OURS_AGAIN, "accumulated": OURS, "defaults": OURS,
    "bf16": OURS, "bf16, checkpointing": OURS_AGAIN, "bf16, accumulated": OURS,
}  # fmt: skip
TOKENS, RATE = 77, 1e-4
SIZE_NUMBERS = 1536  # of SDXL's vector, six numbers of 256 values that the host adds to the pooled text
# At most this many times the host's.
BARS = {
    "cpu": {"time": 0.8, "processor_time": 0.8, "growth": 0.8},
    "cuda": {"time": 0.4, "growth": 1.0, "until_first": 1.0},
}  # fmt: skip


def has_graphs() -> bool:
    """Returns whether this version of the training can replay its steps as CUDA graphs, and so also leave that off."""
    return "cuda_graphs" in {field.name for field in fields(TrainRequest)}


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Args:
        model: "embedded", "sd15", "sdxl" or "sdxl narrow".
        size: height and width of the latents.
        batch: latents in a step.
        steps: optimizer steps of a run.
        sides: ours, and names in HOSTS.
        rank: of the LoRA.
        keeps_checkpoints: whether our checkpoints are written, and timed.
        profiled: whether the last step is watched by the profiler.
    """

    model: str
    size: int
    batch: int
    steps: int
    sides: tuple[str, ...]
    rank: int = 8
    keeps_checkpoints: bool = True
    profiled: bool = False

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names in HOSTS among the sides."""
        return tuple(side for side in self.sides if side in HOSTS)


_GRAPHS = (EAGER,) if has_graphs() else ()
_SDXL = Case(
    "sdxl", 128, 1, 8, (OURS, "bf16", *_GRAPHS, OURS_AGAIN, "bf16, checkpointing"), PRESETS["Thorough"]["sdxl"].rank,
    keeps_checkpoints=False, profiled=True,
)  # fmt: skip
_SDXL_BATCH = replace(_SDXL, batch=4, steps=6, sides=(OURS, "bf16, accumulated"))
_NARROW = {"model": "sdxl narrow", "size": 8, "rank": 4, "steps": 5}
CASES = {
    "embedded": Case("embedded", 16, 4, 16, (OURS, "plain", "accumulated", OURS_AGAIN, "checkpointing", "defaults")),
    "embedded, one at a time": Case("embedded", 16, 1, 20, (OURS, "plain", OURS_AGAIN, "checkpointing", "defaults")),
    "sd15": Case("sd15", 32, 1, 4, (OURS, "plain", OURS_AGAIN, "checkpointing", "defaults")),
    "sdxl": _SDXL,
    "sdxl, batch 4": _SDXL_BATCH,
    "sdxl narrow": replace(_SDXL, **_NARROW),
    "sdxl narrow, batch 4": replace(_SDXL_BATCH, **_NARROW),
}
BY_DEFAULT = {"cpu": ("embedded", "embedded, one at a time", "sd15"), "cuda": ("sdxl", "sdxl, batch 4")}  # by the device


def inputs(case: Case, model: Any) -> dict[str, list]:
    """Returns model, latents and captions as both nodes take them: two LATENTs of one batch each."""
    generator, config = torch.Generator().manual_seed(1), model.model.model_config.unet_config
    width, vector = config["context_dim"], config.get("adm_in_channels")

    def caption() -> list:
        context = torch.randn(1, TOKENS, width, generator=generator)
        return [context, {"pooled_output": torch.randn(1, vector - SIZE_NUMBERS, generator=generator)} if vector else {}]

    latents = [{"samples": torch.randn(case.batch, 4, case.size, case.size, generator=generator)} for _ in range(2)]
    captions = [[caption() for _ in range(case.batch)] for _ in range(2)]
    return {"model": [model], "latents": latents, "positive": captions}


def settings(case: Case, side: str) -> dict[str, Any]:
    """Returns one side's other inputs."""
    shared = {"steps": case.steps, "rank": case.rank, "learning_rate": RATE, "batch_size": case.batch, "seed": 0}
    if side not in HOSTS:
        own: Mapping[str, Any] = {
            "objective": "style finetune", "preset": "Small", "name": "benchmark", "preview_every": 10 * case.steps,
            "gradient_checkpointing": "on" if side == OURS_AGAIN else "auto",
        }  # fmt: skip
        return shared | own | ({"cuda_graphs": "off"} if side == EAGER else {})
    fixed = {"optimizer": "AdamW", "loss_function": "MSE", "algorithm": "LoRA", "existing_lora": "[None]"}
    made = shared | fixed | {"grad_accumulation_steps": 1} | HOSTS[side]
    return made | {"grad_accumulation_steps": made["grad_accumulation_steps"] or case.batch}
