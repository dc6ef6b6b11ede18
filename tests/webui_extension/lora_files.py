"""Small LoRA files under the released names, in the stub host's folder."""

import functools
import tempfile
from pathlib import Path

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
