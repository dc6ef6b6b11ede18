"""Small LoRA files under the released names, in the stub host's folder."""

import functools
import hashlib
import json
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from ..models.synthetic_loras import write_lora
from .stub_host import StubHost

FOUR, UNIFIED = "Hyper-SD15-4steps-lora", "Hyper-SD15-1step-lora"


@functools.cache
def lora_bytes(family: str) -> bytes:
    """Returns a whole small LoRA file in the released form."""
    with tempfile.TemporaryDirectory() as folder:
        return write_lora(Path(folder, "lora.safetensors"), family, rank=1).read_bytes()


def place(host: StubHost, *names: str) -> None:
    """Puts small LoRA files into the host's folder and has them listed."""
    for name in names:
        (host.root / "Lora" / f"{name}.safetensors").write_bytes(lora_bytes("sdxl" if "SDXL" in name else "sd15"))
    host.list_loras()


def own_file(host: StubHost, name: str, **metadata: str) -> Path:
    """Returns a small whole LoRA in a sub-folder of the host's, with the metadata of a training."""
    source, path = host.root / "source.safetensors", host.root / "Lora" / "sub" / f"{name}.safetensors"
    source.write_bytes(lora_bytes("sd15"))
    path.parent.mkdir(exist_ok=True)
    save_file(load_file(source), path, {"title": name, **metadata})
    host.list_loras()
    return path


def known_by_content(host: StubHost, name: str, recipes: dict | None = None, **entry: object) -> str:
    """Returns the tag of a small LoRA that a person's own catalogue knows by its hash under another file name.

    Args:
        host: into whose folders the file and the catalogue are written.
        name: of the file.
        recipes: of the catalogue.
        entry: its row there, without what the file itself says.
    """
    path = own_file(host, name)
    row = {"family": "sd15", "repo": "me/models", "size": path.stat().st_size, **entry}
    row["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (host.root / "hyper_sd").mkdir()
    catalog = {"entries": [row], "recipes": recipes or {}}
    (host.root / "hyper_sd" / "catalog.json").write_text(json.dumps(catalog), encoding="utf-8")
    return f"<lora:{name}:0.9>"
