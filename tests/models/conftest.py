"""A loopback hub with one small LoRA, and a client that does not wait long."""

from dataclasses import replace
from types import ModuleType

import pytest
from hyper_sd.models.catalog import load_catalog


@pytest.fixture
def transfer(monkeypatch) -> ModuleType:
    """models/transfer.py and the client with waits too short to notice."""
    from huggingface_hub import constants
    from hyper_sd.models import transfer

    monkeypatch.setattr(transfer, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    return transfer


@pytest.fixture
def world(tmp_path, transfer):
    """A fresh World."""
    from hyper_sd.tests.models.loopback_hub import LoopbackHub
    from hyper_sd.tests.models.world import World, lora_bytes

    content = lora_bytes()
    with LoopbackHub() as hub:
        entry = load_catalog().get("hyper-sdxl-8steps-lora")
        sha256 = hub.add(entry.repo, entry.file, content)
        yield World(hub, replace(entry, sha256=sha256, size=len(content)), content, tmp_path / "models" / "loras")
