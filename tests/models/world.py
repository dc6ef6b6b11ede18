"""A loopback hub with one small LoRA of an own entry, and a folder to download it into."""

import functools
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hyper_sd.models.entry import Entry
from hyper_sd.models.progress import Progress

MIB = 2**20
SIZE = 12 * MIB
LAYER = "lora_unet_up_blocks_0_attentions_0_proj_in"  # which SDXL alone has


def lora_bytes(size: int = SIZE, seed: int = 0, layer: str = LAYER) -> bytes:
    """Returns a whole safetensors file of about `size` random bytes."""
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({f"{layer}.lora_down.weight": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + np.random.default_rng(seed).bytes(size)


@dataclass
class World:
    """A hub, an entry whose file it serves, and a folder; what a person's first click meets."""

    hub: object
    entry: Entry
    content: bytes
    root: Path
    seen: list[Progress] = field(default_factory=list)

    def download(self, **options) -> Path:
        """Downloads the entry by the real client and keeps the progress."""
        from hyper_sd.models.download import download, open_hub_file

        opener = functools.partial(open_hub_file, endpoint=self.hub.endpoint)
        return download(self.entry, self.root, progress=self.seen.append, **{"opener": opener, **options})

    @property
    def target(self) -> Path:
        return self.root / self.entry.name

    @property
    def kept(self) -> int:
        """Bytes of the partial file."""
        return sum(path.stat().st_size for path in self.root.glob("*.part"))

    @property
    def names(self) -> set[str]:
        """What lies in the folder."""
        return {path.name for path in self.root.iterdir()} if self.root.is_dir() else set()

    def starts(self) -> list[int]:
        """Returns the byte each GET of the file asked to begin at."""
        gets = [request for request in self.hub.requests if request.method == "GET" and "resolve" in request.path]
        ranges = [{name.lower(): value for name, value in request.headers.items()}.get("range") for request in gets]
        return [int(value[6:-1]) if value else 0 for value in ranges]
