"""A running ComfyUI whose hub is on 127.0.0.1 and whose catalogue the test fills: nothing in it reaches another machine."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hyper_sd.demo.base_directory import prepare
from hyper_sd.demo.server import ComfyServer
from hyper_sd.models.jobs import user_catalog
from hyper_sd.tests.models.loopback_hub import Fault, LoopbackHub
from safetensors.numpy import load_file, save

DEMO = Path(__file__).resolve().parents[2] / "demo" / "model"
LORA = DEMO / "hyper_sd_demo_1step_lora.safetensors"
REPO = "tests/models"
LICENCES = {
    "test": {"title": "Test licence", "url": "https://huggingface.co/tests/licence"},
    "strict": {"title": "Test licence: no commercial use", "url": "https://huggingface.co/tests/strict", "acknowledge": True},
}
ROUTES = "/hyper_sd/models"
START, CANCEL, STATUS = f"{ROUTES}/start", f"{ROUTES}/cancel", f"{ROUTES}/status"
PATIENCE = 60.0  # seconds until a test gives up waiting


def weights(size: int, seed: int = 0) -> bytes:
    """Returns a LoRA's file of about `size` bytes, another one for every seed."""
    return save({"x.lora_down.weight": np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)})


def lora(seed: int = 0) -> bytes:
    """Returns the demo model's unified LoRA as a file of its own for every seed: one that is here is not downloaded twice."""
    return save(load_file(LORA), {"seed": str(seed)})


def until(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Returns the condition's first true value, for which it waits so many seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"nothing came of it within {patience:.0f} s")


class ModelWorld:
    """Hub, catalogue and server; `with` starts and stops them.

    Args:
        comfyui: the folder of the host.
        base: an empty folder for its models and outputs.
    """

    def __init__(self, comfyui: Path, base: Path):
        self.base, self.hub = prepare(base), LoopbackHub()
        self.loras = self.base / "models" / "loras"
        self.server = ComfyServer(comfyui, self.base, arguments=("--cpu",))
        self._entries: list[dict] = []

    def __enter__(self) -> "ModelWorld":
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("HF_ENDPOINT", self.hub.endpoint)
            environment.setenv("HF_HOME", str(self.base / "hub"))
            for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
                environment.delenv(name, raising=False)
            self.hub.__enter__()
            self.server.start()
        return self

    def __exit__(self, *_) -> None:
        self.server.stop()
        self.hub.close()

    def offer(self, name: str, content: bytes | Path, *, on_hub: bool = True, **changes) -> str:
        """Adds a file to the hub and an entry to the person's catalogue, and returns the entry's file name."""
        file = f"{name}.safetensors"
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        entry = {"id": name, "title": f"Test {name}", "family": "sd15", "kind": "unified", "steps": 1, "repo": REPO}
        entry |= {"file": file, "size": size, "licence": "test", **changes}
        if on_hub:
            entry["sha256"] = self.hub.add(REPO, file, content)
        self._entries.append(entry)
        self.write_catalogue({"licences": LICENCES, "entries": self._entries})
        return file

    def offer_reward(self, name: str, content: bytes) -> None:
        """Adds a tokenizer of a scorer to the hub and to the person's catalogue."""
        sha256 = self.hub.add(REPO, "tokenizer.json", content)
        entry = {"id": name, "kind": "reward", "repo": REPO, "file": "tokenizer.json", "save_as": f"{name}.json"}
        self._entries.append(entry | {"size": len(content), "sha256": sha256, "licence": "test"})
        self.write_catalogue({"licences": LICENCES, "entries": self._entries})

    def write_catalogue(self, content: dict | str) -> None:
        """Writes the person's catalogue."""
        path = user_catalog(self.base / "user")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    def slow(self, file: str, bytes_per_second: int) -> None:
        """Has the hub send this file's next answer slowly."""
        self.hub.faults.append(Fault(path=file, bytes_per_second=bytes_per_second))

    def ask(
        self, path: str, body: Any = None, *, method: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict]:
        """Returns status and JSON of a route's answer, {} where it is none; a body that is not bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = ({"Content-Type": "application/json"} if data is not None else {}) | (headers or {})
        request = urllib.request.Request(self.server.address + path, data=data, headers=given, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=PATIENCE) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text.startswith(b"{") else {}

    def row(self, entry_id: str) -> dict:
        """Returns an entry's row as the page gets it."""
        return next(row for row in self.ask(ROUTES)[1]["entries"] if row["id"] == entry_id)

    def when(self, entry_id: str, *states: str) -> dict:
        """Returns an entry's row once it is in one of the states."""
        return until(lambda: (row := self.row(entry_id))["state"] in states and row)

    def files(self) -> set[str]:
        """Returns every file of the models folder and the person's catalogue folder."""
        folders = (self.base / "models", self.base / "user" / "hyper_sd")
        return {str(path.relative_to(self.base)) for folder in folders for path in folder.rglob("*") if path.is_file()}
