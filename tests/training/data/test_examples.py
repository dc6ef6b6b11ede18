import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.training.data.examples import BatchOrder, LatentExamples


def test_order_is_a_function_of_the_step_and_visits_everything_once_an_epoch():
    buckets = [[0, 1, 2, 3, 4], [5, 6]]
    order, again = BatchOrder(buckets, 2, seed=1), BatchOrder(buckets, 2, seed=1)
    assert order.batches_per_epoch == 4
    for epoch in range(3):
        batches = [order.numbers(4 * epoch + i) for i in range(4)]
        assert all(set(b) <= set(buckets[0]) or set(b) <= set(buckets[1]) for b in batches)
        assert all(len(b) == 2 for b in batches)
        assert {number for b in batches for number in b} == {*range(7)}
    assert [again.numbers(i) for i in reversed(range(12))] == [order.numbers(i) for i in reversed(range(12))]
    assert [order.numbers(i) for i in range(4)] != [order.numbers(i) for i in range(4, 8)]


def test_bucket_smaller_than_a_batch_is_repeated():
    assert sorted(BatchOrder([[7, 8]], 5, 0).numbers(0)) in ([7, 7, 7, 8, 8], [7, 7, 8, 8, 8])


def test_examples_need_one_caption_each():
    with pytest.raises(TrainingError, match="one caption for each"):
        LatentExamples(torch.zeros(2, 1), {"context": torch.zeros(3, 1)})
    with pytest.raises(TrainingError, match="at least one example"):
        LatentExamples(torch.zeros(0, 1), {})
