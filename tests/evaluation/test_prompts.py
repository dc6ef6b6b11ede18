"""Prompts of files as people have them."""

import json

import pytest
from hyper_sd.errors import EvaluationError
from hyper_sd.evaluation.prompts import all_labels, held_out_labels, read_prompts, spread

COCO = {
    "info": {"description": "COCO 2017 Dataset"},
    "images": [{"id": 397133, "file_name": "000000397133.jpg"}, {"id": 37777}, {"id": 5}],
    "annotations": [
        {"image_id": 37777, "id": 9, "caption": "The dining table near the kitchen has a bowl of fruit on it.\n"},
        {"image_id": 397133, "id": 370509, "caption": "A man is in a kitchen  making pizzas."},
        {"image_id": 397133, "id": 3, "caption": "Man in apron standing on front of oven."},
        {"image_id": 37777, "id": 10, "caption": "A small kitchen has various appliances and a table."},
    ],
}


def test_coco_gives_the_first_caption_of_each_image_in_the_order_of_the_images(tmp_path):
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps(COCO), encoding="utf-8")
    first = ["A man is in a kitchen making pizzas.", "The dining table near the kitchen has a bowl of fruit on it."]
    assert read_prompts(path) == first
    assert read_prompts(path, limit=1) == first[:1]


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [{"id": 1}]}', '{"images": [1], "annotations": []}'])
def test_json_that_is_not_cocos_is_refused_with_what_it_has_to_be(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"captions_val2017\.json"):
        read_prompts(path)


def test_text_has_a_prompt_a_line_without_comments_and_empty_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# mine\n a red fox \n\nsnow, 雪\r\na red fox".encode())
    assert read_prompts(path) == ["a red fox", "snow, 雪", "a red fox"]


@pytest.mark.parametrize("content", [b"", b"\n \n# nothing\n"])
def test_file_without_a_prompt_is_refused(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match="holds no prompt; write one a line"):
        read_prompts(path)


def test_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_prompts(tmp_path / "prompts.txt")


def test_held_out_labels_are_every_eighth_spread_evenly():
    labels = all_labels()
    assert len(labels) == len(set(labels)) == 632
    assert held_out_labels() == labels[::8]
    assert held_out_labels(3) == [labels[0], labels[26 * 8], labels[52 * 8]]
    assert held_out_labels(10**6) == labels[::8]
    assert spread("abcdef", 3) == ["a", "c", "e"]
