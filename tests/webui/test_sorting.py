"""The option "Sort by score" on a real host, through its API, with the scorers that come with the pack."""

import base64
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hyper_sd.models.embedded import SCORERS, TOKENIZER
from hyper_sd.rewards import embedded
from hyper_sd.rewards.scorer import score_all
from hyper_sd.tests.webui.panel import by_name, panel
from hyper_sd.tests.webui.webui_host import data_url
from PIL import Image

MATCH = "demo model: shows what was asked for"
JOB = {
    "prompt": "red apple", "width": 64, "height": 64, "seed": 30, "batch_size": 2, "n_iter": 3, "steps": 4, "cfg_scale": 1.0,
    "sampler_name": "Hyper-SD TCD", "scheduler": "Automatic",
}  # fmt: skip
COUNT = 6


@dataclass(frozen=True)
class Gallery:
    """What the API answered: pictures, and all that it says of them."""

    images: list[np.ndarray]
    info: dict

    @property
    def pictures(self) -> list[str]:
        """The single pictures, each by a hash of its pixels, in the gallery's order, without the grid."""
        return [digest(image) for image in self.images[self.info["index_of_first_image"] :]]

    @property
    def texts(self) -> list[str]:
        """Their infotexts."""
        return self.info["infotexts"][self.info["index_of_first_image"] :]

    @property
    def scores(self) -> list[float]:
        """What these say of the scores."""
        return [float(text.partition("Hyper-SD score: ")[2].strip('"').partition(" (")[0]) for text in self.texts]


def digest(image: np.ndarray) -> str:
    """Returns what a picture is known by."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def ask(webui, sort_by: str | None = None, route: str = "txt2img", **changes) -> Gallery:
    """Returns what six pictures in three batches become; without a scorer the request says nothing of this pack."""
    named = {} if sort_by is None else by_name(sort_by=sort_by)
    answer = webui.ask(f"/sdapi/v1/{route}", {**JOB, **named, "save_images": False, **changes}, timeout=900)
    images = [np.array(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")) for image in answer["images"]]
    return Gallery(images, json.loads(answer["info"]))


@pytest.fixture(scope="module")
def plain(webui):
    """The pictures as they come, without the option."""
    return ask(webui)


@pytest.fixture(scope="module")
def best_first(plain):
    """What the scorer says of them, outside of the host: (positions, the best first, scores in the order they came)."""
    pictures = torch.from_numpy(np.stack(plain.images)).movedim(-1, 1).float() / 255
    scores = score_all(embedded.load_match(SCORERS, TOKENIZER), pictures, ["red apple"] * COUNT)
    return scores.argsort(descending=True, stable=True).tolist(), scores.tolist()


def test_pictures_are_those_without_the_option_sorted_by_their_scores_over_all_batches(webui, plain, best_first):
    order, scores = best_first
    assert order != list(range(COUNT))  # else this would prove nothing
    found = ask(webui, "embedded_match")
    assert found.pictures == [plain.pictures[i] for i in order]
    assert found.info["all_seeds"] == [30 + i for i in order]
    assert found.info["seed"] == 30 + order[0]
    assert found.scores == pytest.approx([scores[i] for i in order], rel=1e-3)
    for seed, text, i in zip(found.info["all_seeds"], found.texts, order, strict=True):
        assert f"Seed: {seed}," in text
        assert f' ({MATCH})"' in text
        assert ", ".join(part for part in text.split(", ") if "Hyper-SD score" not in part) == plain.texts[i]


def test_none_equals_a_request_that_says_nothing_and_reads_no_scorer(webui, plain):
    none = ask(webui, "none")
    assert none.pictures == plain.pictures
    assert none.texts == plain.texts
    assert none.info["all_seeds"] == plain.info["all_seeds"]
    assert webui.ask("/recorder/scorers") == {"held": []}


def test_scorer_is_gone_after_the_job(webui):
    ask(webui, "embedded_match", n_iter=1)
    assert webui.ask("/recorder/scorers") == {"held": []}


def test_panel_that_is_on_sorts_too(webui):
    found = ask(webui, **panel(sort_by=MATCH))
    assert found.scores == sorted(found.scores, reverse=True)
    assert all("Hyper-SD LoRA: Hyper-SD15-4steps-lora" in text for text in found.texts)


def _grid_of(found: Gallery) -> list[str]:
    """Returns the pictures of the grid, row by row."""
    grid = found.images[0]
    rows = [np.split(row, grid.shape[1] // 64, 1) for row in np.split(grid, grid.shape[0] // 64)]
    return [digest(tile) for row in rows for tile in row]


def test_saved_files_have_their_scores_and_the_grid_is_drawn_best_first(webui, plain, best_first):
    settings = dict.fromkeys(("samples_save", "grid_save", "return_grid"), True)
    settings |= {"save_to_dirs": False, "grid_save_to_dirs": False, "grid_format": "png"}  # Neo's grids are jpg unless told
    before = set(webui.data.rglob("*.png"))
    found = ask(webui, "embedded_match", save_images=True, override_settings=settings)
    order, scores = best_first
    assert found.info["index_of_first_image"] == 1
    assert found.pictures == [plain.pictures[i] for i in order]
    assert _grid_of(found) == found.pictures
    assert "Hyper-SD score" not in found.info["infotexts"][0]
    assert found.scores == sorted(found.scores, reverse=True)
    files = sorted(set(webui.data.rglob("*.png")) - before, key=_written)
    grids, singles = [[file for file in files if ("grid" in file.name) == is_grid] for is_grid in (True, False)]
    assert len(grids) == 1
    assert np.array_equal(np.array(Image.open(grids[0]).convert("RGB")), found.images[0])
    assert [digest(np.array(Image.open(file).convert("RGB"))) for file in singles] == plain.pictures
    texts = [Image.open(file).text["parameters"] for file in singles]
    assert sorted(texts) == sorted(found.texts)
    assert Gallery([], {"infotexts": texts, "index_of_first_image": 0}).scores == pytest.approx(scores, rel=1e-3)


def _written(file: Path) -> tuple[int, str]:
    return file.stat().st_mtime_ns, file.name


def test_missing_files_are_told_and_all_pictures_come(webui, plain):
    found = ask(webui, "pick_score")
    assert found.pictures == plain.pictures
    assert found.texts == plain.texts
    said = found.info["extra_generation_params"]["Hyper-SD problem"]
    assert said.startswith("Hyper-SD: the pictures are not sorted. PickScore lacks its files: ")
    assert "in the tab Hyper-SD models" in said


def test_damaged_file_is_told_and_all_pictures_come(webui, plain):
    folder = webui.data / "models" / "hyper_sd_rewards"
    folder.mkdir(exist_ok=True)
    (folder / "sac+logos+ava1-l14-linearMSE.safetensors").write_bytes(b"nothing")
    found = ask(webui, "aesthetic")
    assert found.pictures == plain.pictures
    assert "LAION aesthetic v2 lacks its files: " in found.info["extra_generation_params"]["Hyper-SD problem"]


def test_unknown_scorer_is_refused(webui):
    assert "Sort by score: got 'beauty', allowed is none (None), clip (CLIP score)" in str(ask(webui, "beauty").info)


def test_script_that_lays_out_pictures_keeps_its_order(webui):
    matrix = {"script_name": "prompt matrix", "script_args": [False, False, "positive", "comma", 0], "prompt": "apple|red|big"}
    plain, found = (ask(webui, sort_by, n_iter=1, batch_size=1, **matrix) for sort_by in (None, "embedded_match"))
    assert found.pictures == plain.pictures
    assert np.array_equal(found.images[0], plain.images[0])
    assert len(found.scores) == 4
    assert found.scores != sorted(found.scores, reverse=True)  # else this would prove nothing


def test_inpainting_keeps_masks_behind_their_pictures_and_scores_what_is_seen(webui):
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[16:48, 16:48] = 255
    drawing = np.full((64, 64, 3), 230, np.uint8)
    request = {
        "init_images": [data_url(drawing)], "mask": data_url(mask), "denoising_strength": 0.9, "inpaint_full_res": True,
        "inpainting_fill": 1, "mask_blur": 0,
        "override_settings": {"return_mask": True, "return_mask_composite": True, "return_grid": False},
    }  # fmt: skip
    found = ask(webui, "embedded_match", "img2img", **request)
    assert len(found.images) == 3 * COUNT
    for picture, shown, alone in zip(*(found.images[k::3] for k in range(3)), strict=True):
        assert np.array_equal(shown, mask)
        inside = [image[24:40, 24:40].astype(int) for image in (picture, alone)]
        assert abs(inside[0] - inside[1]).max() <= 2  # another picture's differs by more
    assert abs(found.images[2].astype(int) - found.images[5].astype(int)).max() > 20
    assert found.scores == sorted(found.scores, reverse=True)
    whole = torch.from_numpy(np.stack(found.images[::3])).movedim(-1, 1).float() / 255
    scores = score_all(embedded.load_match(SCORERS, TOKENIZER), whole, ["red apple"] * COUNT)
    assert found.scores == pytest.approx(scores.tolist(), rel=1e-3)


def test_hires_pictures_are_scored_as_they_are_saved(webui, hires):
    found = ask(webui, "embedded_match", **hires, n_iter=1)
    assert len(found.scores) == 2
    assert found.images[-1].shape[:2] == (128, 128)
    assert found.scores == sorted(found.scores, reverse=True)


def test_prompts_marks_are_no_words_of_it(webui, plain):
    order = {"prompt": "[blue dog:red (apple:1.0):0] <lora:other:0>", "n_iter": 1}
    found = ask(webui, "embedded_match", **order)
    pictures = torch.from_numpy(np.stack(found.images)).movedim(-1, 1).float() / 255
    scores = score_all(embedded.load_match(SCORERS, TOKENIZER), pictures, ["red apple"] * 2)
    assert found.scores == pytest.approx(scores.tolist(), rel=1e-3)


def test_infotext_brings_the_option_back(pasting):
    first = ask(pasting, "embedded_match", n_iter=1, batch_size=1)
    answer = pasting.ask("/sdapi/v1/txt2img", {"infotext": first.texts[0], "save_images": False})
    assert json.loads(answer["info"])["infotexts"] == first.texts
