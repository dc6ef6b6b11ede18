"""KID against its definition, retrieval against hand-made neighbours, diversity and fine energy against cases by hand."""

import pytest
import torch
from hyper_sd.evaluation.metrics import diversity, fine_energy, kid, paired_kid, retrieval_accuracy


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


def test_diversity_is_the_mean_distance_within_groups():
    features = torch.tensor([[0.0, 0.0], [10.0, 0.0], [3.0, 4.0], [10.0, 1.0], [0.0, 4.0], [99.0, 99.0]])
    # group 0: distances 5, 4, 3; group 1: 1; group 2 is a single vector
    assert diversity(features, [0, 1, 0, 1, 0, 2]) == pytest.approx((4 + 1) / 2)
    assert diversity(torch.ones(4, 3), [0, 0, 1, 1]) == 0


def test_diversity_refuses_groups_that_say_nothing():
    with pytest.raises(ValueError, match="2 seeds"):
        diversity(torch.ones(2, 3), [0, 1])
    with pytest.raises(ValueError, match="3 vectors and 2 groups"):
        diversity(torch.ones(3, 3), [0, 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_fine_energy_sees_fast_waves_alone(channels):
    x = torch.arange(32) / 32
    slow, fast = ((2 * torch.pi * cycles * x).cos().expand(2, channels, 32, 32) for cycles in (8, 9))
    assert fine_energy(slow + 3) == pytest.approx(0, abs=1e-6)
    assert fine_energy(fast) == pytest.approx(0.5, rel=1e-5)  # the mean square of a cosine
    assert fine_energy(slow + 2 * fast.transpose(2, 3)) == pytest.approx(4 * 0.5, rel=1e-5)
    diagonal = (2 * torch.pi * 7 * (x[:, None] + x)).cos().expand(2, channels, 32, 32)
    assert fine_energy(diagonal) == pytest.approx(0.5, rel=1e-5)  # 7 / 32 each way is 0.31 in all


def test_fine_energy_of_noise_is_its_share_of_the_frequencies():
    noise = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    frequency = torch.fft.fftfreq(16)
    share = float((frequency[:, None] ** 2 + frequency**2 > 1 / 16).double().mean())
    assert fine_energy(noise) == pytest.approx(share, rel=0.02)
    assert fine_energy(3 * noise) == pytest.approx(9 * fine_energy(noise))


def test_paired_kid_matches_a_plain_loop_that_leaves_out_pictures_of_one_prompt():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator) + 0.5
    groups = [1, 2, 3, 1, 2, 3]

    def k(a, b):
        return (float(a.double() @ b.double()) / 4 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6) if groups[i] != groups[j]]
    expected = sum(k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs) / len(pairs)
    assert paired_kid(x, y, groups) == pytest.approx(expected)
    assert paired_kid(x, x, groups) == 0


def test_paired_kid_of_pictures_that_are_alike_in_pairs_is_not_below_0_as_kid_is():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 8, generator=generator)
    y = x + 0.3
    many = torch.randn(20000, 8, generator=generator)
    truth = kid(many[:4000], many[4000:8000] + 0.3)
    assert kid(x, y) < -0.3
    assert paired_kid(x, y, list(range(24))) == pytest.approx(truth, abs=0.3)


def test_paired_kid_refuses_sets_that_are_no_pairs():
    with pytest.raises(ValueError, match="two sets of one size"):
        paired_kid(torch.ones(3, 4), torch.ones(2, 4), [1, 2, 3])
    with pytest.raises(ValueError, match="2 groups or more"):
        paired_kid(torch.ones(2, 4), torch.ones(2, 4), [1, 1])
