"""Wherever the repository names a Hyper-SD file or a catalogue id, the catalogue has it."""

import json
import re
from pathlib import Path

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.jobs import Downloads, user_catalog
from hyper_sd.tests.repository import FILES, ROOT

ID = re.compile(r"(?<![\w-])hyper-(?:sd15|sdxl|sd3|flux1)[a-z0-9-]*-(?:lora|unet[a-z0-9-]*)(?![\w-])")
FILE = re.compile(r"Hyper-(?:SD15|SDXL|SD3|FLUX)[\w.-]*\.safetensors")
SPEAKS = {
    "nodes", "web", "webui_extension", "example_workflows", "subgraphs", "demo", "locales", "localizations", "docs",
    "README.md", "README.zh-CN.md",
}  # fmt: skip
TEXT = {".py", ".js", ".json", ".md"}


@pytest.fixture(scope="module")
def mentions():
    """(path, ids, file names) of every file that may name one."""
    paths = [path for path in FILES if path.parts[0] in SPEAKS and path.suffix in TEXT]
    texts = {path: Path(ROOT, path).read_text(encoding="utf-8", errors="replace") for path in paths}
    return [(path, set(ID.findall(text)), set(FILE.findall(text))) for path, text in texts.items()]


def test_every_id_that_is_named_exists(mentions):
    known = {entry.id for entry in load_catalog()}
    named = set().union(*(ids for _, ids, _ in mentions))
    assert "hyper-sdxl-8steps-lora" in named
    assert not {str(path): ids - known for path, ids, _ in mentions if ids - known}


def test_every_file_that_is_named_exists(mentions):
    known = {entry.name for entry in load_catalog()}
    assert not {str(path): names - known for path, _, names in mentions if names - known}


def test_node_offers_exactly_the_models_ids(pack, tmp_path, monkeypatch):
    from hyper_sd.nodes import model_downloads

    def offered() -> list[str]:
        (model,) = [given for given in pack["HyperSDModelDownload"].define_schema().inputs if given.id == "model"]
        return model.options

    path = user_catalog(tmp_path)
    own_catalogue = Downloads(model_downloads.model_folders, path, model_downloads.notify)
    monkeypatch.setattr(model_downloads, "DOWNLOADS", own_catalogue)
    known = [entry.id for entry in load_catalog().models]  # no loader reads a scorer's file
    assert offered() == known
    own = {"id": "my-lora", "family": "sd15", "kind": "unified", "steps": 1, "repo": "me/models", "file": "a.safetensors"}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"entries": [own | {"size": 1000}]}), encoding="utf-8")
    assert sorted(offered()) == sorted([*known, "my-lora"])
