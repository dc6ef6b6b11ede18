"""Texts as token numbers."""

import pytest
from hyper_sd.errors import RewardError
from hyper_sd.rewards.words import Words
from hyper_sd.tests.rewards.small_networks import write_tokenizer

ID = "reward-clip-tokenizer"


@pytest.fixture
def file(tmp_path):
    """A tokenizer of 50 words."""
    return write_tokenizer(tmp_path / "tokenizer.json", 50, "<start>", "<end>")


def test_texts_are_marked_filled_up_and_cut(file):
    words = Words.load(file, ID, count=50, length=5, padding=49)
    ids, mask = words(["w3", "", "w1 w2 w3 w4 w5"])
    assert ids.tolist() == [[48, 3, 49, 49, 49], [48, 49, 49, 49, 49], [48, 1, 2, 3, 49]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]


def test_what_the_file_says_of_cutting_is_set_anew(file):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=3)
    tokenizer.save(str(file))
    ids, _ = Words.load(file, ID, count=50, length=6, padding=0)(["w1 w2 w3"])
    assert ids.tolist() == [[48, 1, 2, 3, 49, 0]]


def test_tokenizer_of_another_model_is_told(file):
    with pytest.raises(RewardError, match="another model: it has 50 words, not 49408"):
        Words.load(file, ID, count=49408, length=77, padding=49407)


def test_missing_tokenizer_is_told(tmp_path):
    with pytest.raises(RewardError, match=f"is not there.*download {ID}"):
        Words.load(tmp_path / "none.json", ID, count=50, length=5, padding=49)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"model": {"vocab": {"a": 0}}}', b"\xff\xfe\x00"])
def test_file_that_is_no_tokenizer_is_told(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(RewardError, match="cannot be read as a tokenizer"):
        Words.load(path, ID, count=50, length=5, padding=49)
