from hyper_sd.training.data.remarks import Remark, in_words


def test_files_of_one_reason_share_a_sentence():
    remarks = [Remark("a", "is small"), Remark("b", "is blue"), Remark("c", "is small")]
    assert in_words(remarks) == ["a and c: each is small", "b is blue"]
    assert in_words([Remark(name, "is red") for name in "abcd"]) == ["a, b, c and d: each is red"]
    assert in_words([Remark(name, "is red") for name in "abcdefgh"]) == ["a, b, c and 5 more: each is red"]


def test_many_reasons_are_counted():
    remarks = [Remark(str(number), f"is {number}") for number in range(8)]
    assert in_words([*remarks, remarks[7]]) == [*(f"{number} is {number}" for number in range(6)), "and 3 more"]
    assert in_words([]) == []
