"""Started once per process by a launcher: trains the tiny network under accelerate as a JSON file of scenarios says.

Arguments: the file, and the folder for checkpoints. Where a scenario has "stop_at", the second process alone is asked to stop
in that step.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import conftest  # noqa: F401 - binds the package
import torch
from hyper_sd.tests.training.fakes import make_denoiser, make_examples
from hyper_sd.tests.training.feedback.feedback_jobs import make_judge
from hyper_sd.training.launch.__main__ import StopRequest
from hyper_sd.training.launch.accelerate_engine import AccelerateEngine
from hyper_sd.training.loop import train
from hyper_sd.training.lora_layers import LoraLayers
from hyper_sd.training.plain_config import from_plain

RANK = int(os.environ["RANK"])


def run(scenario, folder, request):
    """Returns the steps this process took."""
    config, denoiser, steps = from_plain(scenario["settings"]), make_denoiser(), []
    layers, examples = LoraLayers(denoiser.network, config.rank, dtype=torch.float64), make_examples()

    def asked():
        return request() or (RANK == 1 and len(steps) + 1 == scenario.get("stop_at"))

    engine = AccelerateEngine("fp32", asked)
    assert engine.agree(7)
    assert not engine.agree(engine.rank)
    given = {"folder": folder, "engine": engine, "judge": make_judge() if config.feedback else None}
    for state in train(config, denoiser, layers, examples, stop=lambda: engine.stopping, **given):
        steps.append(state.step)
        sys.stderr.write(f"step {state.step}\n")
        sys.stderr.flush()
    engine.wait()
    layers.detach()
    return steps


def main(scenarios, folder):
    torch.set_default_dtype(torch.float64)  # two ways to add up are told apart from two that differ
    request, steps = StopRequest(), {}
    with request.listening():
        for name, scenario in scenarios.items():
            steps[name] = run(scenario, Path(folder, scenario["folder"]), request)
    Path(folder, f"steps-{RANK}.json").write_text(json.dumps(steps), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2])
