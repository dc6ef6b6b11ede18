"""KID against its definition, retrieval against hand-made neighbours."""

import pytest
import torch
from hyper_sd.evaluation.metrics import kid, retrieval_accuracy


def test_kid_matches_its_definition_on_a_small_set():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0], [2.0, 0.0]])

    def k(a, b):
        return (float(a @ b) / 2 + 1) ** 3

    within_x = k(x[0], x[1])
    within_y = (k(y[0], y[1]) + k(y[0], y[2]) + k(y[1], y[2])) / 3
    between = sum(k(a, b) for a in x for b in y) / 6
    assert kid(x, y) == pytest.approx(within_x + within_y - 2 * between)


def test_kid_grows_with_the_shift_between_two_sets():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(400, 8, generator=generator), torch.randn(400, 8, generator=generator)
    assert abs(kid(a, b)) < 0.05
    assert kid(a, b + 1) > kid(a, b + 0.5) > 0.05


def test_kid_refuses_sets_of_one_vector_or_two_widths():
    with pytest.raises(ValueError, match="at least 2"):
        kid(torch.ones(1, 4), torch.ones(5, 4))
    with pytest.raises(ValueError, match="one width"):
        kid(torch.ones(5, 3), torch.ones(5, 4))


def test_retrieval_counts_a_reference_of_the_same_class_among_the_k_nearest():
    reference = torch.tensor([[1.0, 0.0], [0.9, 0.5], [0.0, 1.0]])
    features = torch.tensor([[2.0, 0.1], [0.1, 3.0]])
    assert retrieval_accuracy(features, reference, [0, 2], [0, 1, 2]) == 1.0
    assert retrieval_accuracy(features, reference, [1, 1], [0, 1, 2]) == 0.0
    assert retrieval_accuracy(features, reference, [1, 1], [0, 1, 2], k=2) == 1.0
    assert retrieval_accuracy(features, reference, [7, 7], [7, 1, 2]) == 0.5
