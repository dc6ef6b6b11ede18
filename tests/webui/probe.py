"""A WebUI extension of the benchmark: times the sampler's part of every picture, on request without the network.

Copied into the host's extensions folder as scripts/probe.py. A prompt that begins with "without model" replaces the
denoiser by a stored tensor, so that what is left is the sampler and the host's own work around it.
"""

import json
import time
from pathlib import Path

from modules import paths_internal, scripts, sd_samplers_cfg_denoiser

TIMES = Path(paths_internal.data_path) / "probe.jsonl"
MARK = "without model"
DENOISER = sd_samplers_cfg_denoiser.CFGDenoiser
FORWARD = DENOISER.forward


def _constant(self, x, *arguments, **named):
    self.step += 1
    return self.probe if getattr(self, "probe", None) is not None else self.__dict__.setdefault("probe", x * 0.5)


class Probe(scripts.Script):
    """Writes a line a picture: sampler, steps, seconds of this thread and of the wall clock."""

    def title(self) -> str:
        return "Probe"

    def show(self, is_img2img: bool):
        return scripts.AlwaysVisible

    def process_before_every_sampling(self, p, *values, **sampling) -> None:
        DENOISER.forward = _constant if p.prompt.startswith(MARK) else FORWARD
        self.started = time.thread_time(), time.perf_counter()

    def post_sample(self, p, ps, *values) -> None:
        spent = time.thread_time() - self.started[0], time.perf_counter() - self.started[1]
        DENOISER.forward = FORWARD
        with TIMES.open("a", encoding="utf-8") as file:
            file.write(json.dumps([p.sampler_name, p.steps, *spent]) + "\n")
