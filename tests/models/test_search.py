"""Finding files of the catalogue by a few words."""

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.search import is_found

CATALOG = load_catalog()


def found(asked: str) -> list[str]:
    return [entry.id for entry in CATALOG if is_found(entry, asked)]


@pytest.mark.parametrize(
    "asked", ["lightning 4", "Lightning 4 steps", "4-step LIGHTNING", "sdxl lightning 4step", "4步 lightning"]
)
def test_method_and_steps_find_the_one_file(asked):
    assert found(asked) == ["sdxl-lightning-4step-lora"]


@pytest.mark.parametrize("asked", ["小 CFG 4步 sdxl", "小CFG、4 步、SDXL", "用于SDXL 小CFG 4步", "PCM small CFG sdxl 4步"])
def test_chinese_title_is_found_with_and_without_spaces(asked):
    assert found(asked) == ["pcm-sdxl-smallcfg-4step-lora"]


def test_chinese_and_english_words_find_the_same_files():
    assert found("一步完整模型") == found("one-step checkpoint") == ["hyper-sdxl-1step-unet-comfyui-fp16"]
    assert found("图像评分") == found("scores of pictures") == [entry.id for entry in CATALOG if entry.is_reward]


def test_family_is_found_by_key_and_by_title():
    assert found("sd15 pcm") == found("SD1.5 pcm") == [entry.id for entry in CATALOG if entry.id.startswith("pcm-sd15")]


def test_number_of_steps_is_one_that_the_file_is_used_at():
    assert found("tdd 6") == ["tdd-sdxl-lora"]
    assert found("pcm 6") == ["pcm-sd15-lcmlike-lora", "pcm-sdxl-lcmlike-lora"]
    assert found("unified 3") == [entry.id for entry in CATALOG if entry.kind == "unified"]


def test_own_method_is_found_by_its_name():
    own = [entry.id for entry in CATALOG if entry.recipe is None and not entry.is_reward]
    assert set(own) <= set(found("hyper-sd"))
    assert not [entry_id for entry_id in found("hyper-sd") if CATALOG.get(entry_id).is_reward]


def test_file_name_and_id_are_found():
    assert found("pytorch_lora") == []  # a name on the hub alone, under which it does not lie on the disk
    assert found("TCD-SD15-LoRA.safetensors") == ["tcd-sd15-lora"]
    assert found("hyper-sdxl-8steps-lora") == ["hyper-sdxl-8steps-lora"]


@pytest.mark.parametrize("asked", ["", "  "])
def test_no_word_finds_all(asked):
    assert len(found(asked)) == len(CATALOG)


def test_nothing_is_found_by_what_no_file_has():
    assert found("flying carpet") == found("9" * 5000) == []
