"""The catalogue: the released files as data, and people's own entries beside them."""

import json
import re

import pytest
from hyper_sd.errors import CatalogError
from hyper_sd.models.catalog import CATALOG, load_catalog
from hyper_sd.models.entry import read_entry, write_entry
from hyper_sd.models.families import FAMILIES

NAMES = {"sd15": "Hyper-SD15-", "sdxl": "Hyper-SDXL-", "sd3": "Hyper-SD3-", "flux": "Hyper-FLUX.1-dev-"}
OWN = {"id": "mine", "family": "sdxl", "kind": "n-step", "steps": 4, "repo": "me/models", "file": "mine.safetensors"}


@pytest.fixture(scope="module")
def catalog():
    """The pack's own entries, without the scorers' files."""
    return tuple(entry for entry in load_catalog().models if entry.recipe is None)


@pytest.fixture
def user_file(tmp_path):
    """Writes a person's catalogue and returns its path."""

    def write(*entries, **more):
        path = tmp_path / "catalog.json"
        path.write_text(json.dumps({"entries": entries, **more}), encoding="utf-8")
        return path

    return write


def test_catalog_holds_every_released_file(catalog):
    assert len(catalog) == 19
    assert load_catalog().entries[:19] == catalog
    assert {family: sum(entry.family == family for entry in catalog) for family in FAMILIES} == {
        "sd15": 6,
        "sdxl": 8,
        "sd3": 3,
        "flux": 2,
    }


def test_entry_reads_back_what_was_written(catalog):
    licences = {entry.licence.name: entry.licence for entry in load_catalog()}
    recipes = {recipe.name: recipe for recipe in load_catalog().recipes}
    for entry in load_catalog():
        assert read_entry(json.loads(json.dumps(write_entry(entry))), licences, recipes) == entry


def test_ids_files_and_hashes_are_unique():
    catalog = load_catalog()
    for values in ([e.id for e in catalog], [e.name for e in catalog], [e.sha256 for e in catalog if e.sha256]):
        assert len(values) == len(set(values))


def test_name_agrees_with_family_steps_and_kind(catalog):
    for entry in catalog:
        assert entry.name.startswith(NAMES[entry.family])
        assert int(re.search(r"-(\d+)steps?-", entry.name).group(1)) == entry.steps
        assert ("-CFG-" in entry.name) == (entry.kind == "cfg")
        assert entry.name.endswith("lora.safetensors") == (entry.folder == "loras")
        assert FAMILIES[entry.family].title.split(".")[0] in entry.title
        assert entry.kind == "unified" or entry.id.startswith(entry.name.split("-lora")[0].lower().replace(".", "")[:12])


def test_segments_and_strength_agree_with_the_recipes(catalog):
    for entry in catalog:
        flow = entry.family in {"sd3", "flux"}
        trailing = entry.settings.grid == "trailing"
        assert entry.strength == (0.125 if flow else 1.0)
        assert entry.num_segments == (entry.steps if trailing else 1)
        assert trailing == (not flow and entry.kind in {"n-step", "cfg"})
        assert entry.step_range == ((1, 8) if entry.kind == "unified" else (entry.steps, entry.steps))
        assert entry.settings.start_timestep == (800 if entry.kind in {"unet", "checkpoint"} else 999)


def test_flux_asks_for_its_licence_and_nothing_else_does(catalog):
    assert {entry.family for entry in catalog if entry.licence.acknowledge} == {"flux"}
    assert all(entry.licence.acknowledge for entry in catalog if entry.family == "flux")


def test_unknown_hash_is_absent_and_known_sizes_are_exact(catalog):
    assert [entry.id for entry in catalog if not entry.sha256] == [
        "hyper-sdxl-1step-unet",
        "hyper-sdxl-1step-unet-comfyui-fp16",
    ]
    assert {entry.size for entry in catalog if entry.size} == {269127064, 787359648, 472049168, 1388026440}


def test_workflow_metadata_is_what_the_host_reads():
    entry = load_catalog().get("hyper-sdxl-8steps-lora")
    assert entry.workflow_metadata() == {
        "name": "Hyper-SDXL-8steps-lora.safetensors",
        "url": "https://huggingface.co/ByteDance/Hyper-SD/resolve/main/Hyper-SDXL-8steps-lora.safetensors",
        "directory": "loras",
        "hash": entry.sha256,
        "hash_type": "SHA256",
    }


def test_unknown_id_names_those_like_it():
    catalog = load_catalog()
    with pytest.raises(CatalogError, match="did you mean hyper-sdxl-8steps-lora"):
        catalog.get("hyper-sdxl-8step-lora")
    with pytest.raises(CatalogError, match="it has hyper-sd15-1step-lora, "):
        catalog.get("§")


def test_scorers_files_have_a_folder_of_their_own_and_no_steps():
    rewards = [entry for entry in load_catalog() if entry.is_reward]
    assert len(rewards) == 8
    for entry in rewards:
        assert (entry.folder, entry.family, entry.steps, entry.step_range) == ("hyper_sd_rewards", "any", 0, (0, 0))
        assert entry.id.startswith("reward-")
        assert entry.approximate_size
    assert [entry.id for entry in rewards if not entry.sha256] == ["reward-aesthetic-v2"]
    assert [entry.id for entry in rewards if entry.licence.name == "unknown"] == ["reward-pick-score"]


def test_file_that_is_saved_under_another_name_is_fetched_under_its_own():
    data = load_catalog().get("reward-clip-vit-l-14").workflow_metadata()
    assert data["name"] == "clip-vit-large-patch14.safetensors"
    assert data["url"].endswith("/openai/clip-vit-large-patch14/resolve/main/model.safetensors")


REWARD = {"id": "mine", "kind": "reward", "repo": "me/models", "file": "mine.pt", "sha256": "0" * 64}


def test_own_scorers_file_is_taken(user_file):
    entry = load_catalog(user_file(REWARD)).entries[-1]
    assert (entry.name, entry.ending, entry.family) == ("mine.pt", ".pt", "any")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": None}, "mine.pt needs its sha256"),
        ({"file": "mine.ckpt"}, "only safetensors, pt, bin and json files"),
        ({"save_as": "../mine.pt"}, "save_as must look like"),
        ({"save_as": "mine.safetensors"}, "save_as must end as file does"),
        ({"save_as": "imagereward.PT"}, "save_as must look like"),
        ({"save_as": "imagereward.pt"}, "already has the file name"),
        ({"family": "sdxl"}, "family must be one of any"),
        ({"steps": 4}, "a scorer's file has no steps"),
    ],
)
def test_wrong_scorers_file_is_refused_by_name(user_file, change, said):
    with pytest.raises(CatalogError, match=re.escape(said)):
        load_catalog(user_file({**REWARD, **change}))


def test_own_entries_stand_behind_the_packs(user_file):
    licence = {"mine": {"title": "Mine", "url": "https://example.com/licence", "acknowledge": True}}
    entry = load_catalog(user_file({**OWN, "licence": "mine"}, licences=licence)).entries[-1]
    assert (entry.id, entry.title, entry.licence.acknowledge, entry.folder) == ("mine", "mine", True, "loras")
    assert (entry.settings.sampler, entry.num_segments, entry.sha256) == ("hyper_sd_tcd", 1, None)


def test_user_file_that_does_not_exist_adds_nothing(tmp_path):
    assert len(load_catalog(tmp_path / "none.json").models) == 50


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "../x"}, "id must look like"),
        ({"id": "hyper-sdxl-8steps-lora"}, "is taken"),
        ({"file": "HYPER-SDXL-8steps-lora.safetensors"}, "already has the file name"),
        ({"file": "../../evil.safetensors"}, "file must look like"),
        ({"file": "/etc/x.safetensors"}, "file must look like"),
        ({"file": "a\\b.safetensors"}, "file must look like"),
        ({"file": "model.ckpt"}, "only safetensors"),
        ({"file": ".hidden.safetensors"}, "file must look like"),
        ({"repo": "https://example.com/x"}, "repo must look like"),
        ({"repo": "a/../b"}, "repo must look like"),
        ({"family": "sd2"}, "family must be one of sd15, sdxl, sd3, flux"),
        ({"kind": "lora"}, "kind must be one of"),
        ({"steps": 0}, "steps must be a number from 1"),
        ({"steps": True}, "steps must be a number"),
        ({"step_range": [8, 1]}, "step_range must be"),
        ({"strength": "1"}, "strength must be a number"),
        ({"size": -1}, "size must be a number"),
        ({"sha256": "abc"}, "64 lower-case hex"),
        ({"settings": {"eta": 2}}, "eta must be a number from 0 to 1"),
        ({"settings": {"speed": 2}}, "settings must be an object"),
        ({"licence": "none"}, "licence must be one of"),
        ({"url": "https://example.com"}, "unknown field url"),
        ({"title": ""}, "title must be"),
    ],
)
def test_wrong_own_entry_is_refused_by_name(user_file, change, said):
    path = user_file({**OWN, **change})
    with pytest.raises(CatalogError, match=re.escape(said)) as caught:
        load_catalog(path)
    assert f"{path}, entry 1" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"entries": {}}', '{"entries": [3]}', '{"entries": [], "licences": []}'),
        pytest.param("[" * 100_000, id="nested too deeply"),
        *(
            pytest.param(text.replace("X", "[" * depth + "]" * depth), id=f"{place}, {depth} deep")
            for depth in (17, 300, 900, 5_000)
            for place, text in (
                ("entry", '{"entries": [X]}'),
                ("field", '{"entries": [{"id": X}]}'),
                ("licence", '{"entries": [{}], "licences": {"own": X}}'),
                ("other", '{"entries": [], "note": X}'),
            )
        ),
    ],
)
def test_wrong_user_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "catalog.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CatalogError, match=re.escape(str(path))):
        load_catalog(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])  # as Windows' editor and shell write it
def test_user_file_with_a_byte_order_mark_is_read(user_file, encoding):
    path = user_file({**OWN, "title": "Mein Stück"})
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert load_catalog(path).entries[-1].title == "Mein Stück"


def test_pack_file_is_plain_ascii_json():
    assert CATALOG.read_bytes().isascii()


@pytest.mark.parametrize(
    ("name", "entry_id"),
    [
        ("Hyper-SD15-1step-lora.safetensors", "hyper-sd15-1step-lora"),
        ("hyper-sdxl-8steps-cfg-LORA.SafeTensors", "hyper-sdxl-8steps-cfg-lora"),
        ("Hyper-FLUX.1-dev-8steps-lora", "hyper-flux1-dev-8steps-lora"),
        ("Hyper-SDXL-8steps-lora.sft", "hyper-sdxl-8steps-lora"),
        ("Hyper-SDXL-4steps-lora_fp16 (1).safetensors", "hyper-sdxl-4steps-lora"),
        ("Hyper-SD15-4steps-lora-and-ink.safetensors", None),
        ("Hyper-SDXL-1step-Unet.safetensors", None),
        ("my-unified-style.safetensors", None),
        ("", None),
    ],
)
def test_lora_is_found_by_its_files_name(name, entry_id):
    entry = load_catalog().lora_named(name)
    assert (entry.id if entry else None) == entry_id
