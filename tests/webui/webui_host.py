"""A WebUI of the A1111 family as a child process with a data folder of its own, and its API."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hyper_sd.demo.server import free_port
from PIL import Image
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 900.0
FLAGS = (
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check", "--no-hashing", "--api",
    "--disable-console-progressbars", "--server-name", "127.0.0.1",
)  # fmt: skip
WHERE_KNOWN = ("--no-download-sd-model", "--do-not-download-clip")  # a host refuses to start with a flag it does not know
FLAG_FILES = ("modules/cmd_args.py", "backend/args.py", "ldm_patched/modules/args_parser.py")
ON_CPU, FULL_ON_CPU = ("--always-cpu", "--cpu"), ("--no-half", "--precision", "full", "--use-cpu", "all")
OWN_LOADERS = ("backend", "ldm_patched")  # folders of the hosts that know a checkpoint by its tensors, as ComfyUI does
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1"}
SETTINGS = {
    "sd_model_checkpoint": "tiny.safetensors", "randn_source": "CPU", "samples_save": False, "grid_save": False,
    "show_progress_every_n_steps": 1, "live_previews_image_format": "png",
    "CLIP_stop_at_last_layers": 1,  # Forge neo's own default is 2
    # What was never saved stays as a request's override_settings had it.
    "k_sched_type": "Automatic", "skip_early_cond": 0.0, "sd_noise_schedule": "Default",
}  # fmt: skip
# Forge-classic of February 2025 takes its default, 0, for the first step, which it so draws at CFG 1; elsewhere -1 is as 0.
GUIDED_FROM_THE_START = {"skip_early_cond": -1.0}
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class WebUIError(RuntimeError):
    """The host did not start, or its API refused a request."""


@dataclass(frozen=True)
class Batch:
    """A finished batch: pictures as uint8 arrays, the first one's infotext, and what recorder.py kept."""

    pictures: list[np.ndarray]
    infotext: str
    tensors: dict[str, torch.Tensor]
    loras: list[list]
    seeds: list[int]

    @property
    def latents(self) -> torch.Tensor:
        """What the sampler returned, [batch, 4, height / 8, width / 8]."""
        return self.tensors["latents"]

    @property
    def sigmas(self) -> list[float]:
        """The noise level of every network call."""
        return [self.tensors[f"{i}.sigma"][0].item() for i in range(len(self.loras))]

    def x(self, call: int) -> torch.Tensor:
        """The sampler's latents at a network call; A1111 stacks those of the negative prompt behind them."""
        return self.tensors[f"{call}.x"][: len(self.latents)]


class WebUI:
    """A host that runs as long as the `with` block.

    Args:
        root: its checkout.
        data: the folder of its models, extensions and settings, as `prepare` makes it.
        python: the interpreter that has its requirements.
    """

    def __init__(self, root: Path, data: Path, python: str):
        self.root, self.data = root, data
        self.port = free_port()
        self.address, self.log = f"http://127.0.0.1:{self.port}", data / "webui.log"
        self.command = [python, "-u", "launch.py", *FLAGS, *flags_of(root)]
        self.command += ["--port", str(self.port), "--data-dir", str(data)]
        self.command += ["--gradio-allowed-path", str(root)]  # with a data folder Forge forbids its page its own scripts

    @property
    def reads_yaml(self) -> bool:
        """Whether the host takes a checkpoint's shape and prediction from a yaml beside it."""
        return reads_yaml(self.root)

    def takes(self, field: str) -> bool:
        """Returns whether a txt2img request has such a field."""
        return field in self._api["components"]["schemas"]["StableDiffusionProcessingTxt2Img"]["properties"]

    @property
    def has_schedule_types(self) -> bool:
        """Whether the host's images have a schedule type; Forge-classic has an option for all of them."""
        return "/sdapi/v1/schedulers" in self._api["paths"]

    @cached_property
    def _api(self) -> dict:
        return self.ask("/openapi.json")

    def __enter__(self) -> "WebUI":
        environment = {**os.environ, **OFFLINE, "PYTHONIOENCODING": "utf-8", "NO_PROXY": "*", "no_proxy": "*"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.root, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.process.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)  # the hosts answer no gentler one
        self.process.wait()

    def wait(self, starts: int = 1) -> None:
        """Returns once the host has said so many times that it is up; a request before that would break its start.

        Raises: WebUIError with the end of the log.
        """
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if self.log.read_text(encoding="utf-8", errors="replace").count("Startup time:") >= starts:
                return
            time.sleep(0.25)
        text = self.log.read_text(encoding="utf-8", errors="replace")
        raise WebUIError(f"{self.root} did not start; the end of its log:\n{text[-3000:]}")

    def ask(self, path: str, body: dict | None = None, timeout: float = 300) -> Any:
        """Returns a route's JSON; with a body it is a POST.

        Raises: WebUIError with what the host answered.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data=data, headers={"Content-Type": "application/json"})
        try:
            with _DIRECT.open(request, timeout=timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise WebUIError(f"{path}: {error.code} {error.read().decode(errors='replace')[:2000]}") from error

    def draw(self, route: str = "txt2img", **changes: Any) -> Batch:
        """Returns what a request makes; 64 x 64, 4 steps, seed 1 and our sampler if not said otherwise."""
        request = {"prompt": "red apple", "steps": 4, "width": 64, "height": 64, "seed": 1, "cfg_scale": 1.0}
        if "infotext" not in changes:
            request |= {"sampler_name": "Hyper-SD TCD", "scheduler": "Automatic"}
        else:
            request = {}
        answer = self.ask(f"/sdapi/v1/{route}", {**request, **changes, "send_images": True, "save_images": False})
        info = json.loads(answer["info"])
        pictures = [np.array(Image.open(io.BytesIO(base64.b64decode(image)))) for image in answer["images"]]
        return Batch(pictures, info["infotexts"][0], *self.record())

    def record(self) -> tuple[dict[str, torch.Tensor], list, list]:
        """Returns the newest batch: tensors, LoRAs of every network call, seeds."""
        newest = max((self.data / "records").iterdir())
        with safe_open(newest, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            notes = file.metadata()
        return tensors, json.loads(notes["loras"]), json.loads(notes["seeds"])


def reads_yaml(root: Path) -> bool:
    """Returns whether the host in a folder takes a checkpoint's shape from a yaml; the others know it by its tensors."""
    return not any((root / name).is_dir() for name in OWN_LOADERS)


def flags_of(root: Path) -> list[str]:
    """Returns the flags that not every host has, as this one knows them."""
    files = [root / name for name in FLAG_FILES]
    known = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    on_cpu = next(([flag] for flag in ON_CPU if f'"{flag}"' in known), [*FULL_ON_CPU])
    return [*(flag for flag in WHERE_KNOWN if f'"{flag}"' in known), *on_cpu]


def _preview_of(root: Path) -> str:
    """Returns the host's name of the live preview that needs no model."""
    options = root / "modules" / "shared_options.py"
    return "Approx cheap" if '"Approx cheap"' in options.read_text(encoding="utf-8") else "RGB"


def _marked_as_of(root: Path) -> dict[str, str]:
    """Returns the settings by which a host knows that they are of its own version; Forge neo of 2026 waits for a key if not."""
    found = re.search(r'VERSION_UID[^=\n]*= "([^"]+)"', (root / "modules" / "launch_utils.py").read_text(encoding="utf-8"))
    return {"VERSION_UID": found[1]} if found else {}


def data_url(picture: np.ndarray) -> str:
    """Returns a picture as the API takes it."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def prepare(data: Path, root: Path) -> None:
    """Makes the data folder of the host in root: this pack and the recorder, settings, LoRAs, and the tiny checkpoints."""
    from . import tiny_checkpoint as tiny

    checkpoints, loras = data / "models" / "Stable-diffusion", data / "models" / "Lora"
    recorder = data / "extensions" / "recorder" / "scripts"
    for folder in (checkpoints, loras, recorder, data / "tmp"):  # to the last Forge neo writes, which does not make it
        folder.mkdir(parents=True)
    (data / "extensions" / "hyper-sd").symlink_to(ROOT, target_is_directory=True)
    shutil.copy(Path(__file__).with_name("recorder.py"), recorder)
    settings = {**SETTINGS, **_marked_as_of(root), "show_progress_type": _preview_of(root)}
    (data / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    shape = tiny.SMALL if reads_yaml(root) else tiny.WIDE
    tiny.write_checkpoint(checkpoints / "tiny.safetensors", shape)
    for i, name in enumerate(("Hyper-SD15-4steps-lora", "Hyper-SD15-1step-lora", "other")):
        tiny.write_lora(loras / f"{name}.safetensors", shape, seed=20 + i)
    if reads_yaml(root):
        tokenizer = tiny.write_tokenizer(data / "tokenizer", shape)
        os.link(checkpoints / "tiny.safetensors", checkpoints / "tiny_v.safetensors")
        tiny.write_yaml(checkpoints / "tiny.safetensors", shape, tokenizer)
        tiny.write_yaml(checkpoints / "tiny_v.safetensors", shape, tokenizer, "v")


def default_python(root: Path) -> str:
    """Returns the Python that the host's own start script would use, else the running one."""
    places = [root / "venv" / "bin" / "python", root / "venv" / "Scripts" / "python.exe"]
    return next((str(place) for place in places if place.exists()), sys.executable)
