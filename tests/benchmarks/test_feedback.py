"""The benchmark of human feedback: its sums over seeds and prompts, on verdicts that are written by hand."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
feedback = pytest.importorskip("hyper_sd.benchmarks.feedback")

COUNT, SEEDS = 4, 3
JUDGES = (feedback.MATCH, feedback.QUALITY, "retrieval", "likeness")


def verdicts(shift: float, noise: float = 0.0, seeds: int = SEEDS) -> dict:
    generator = torch.Generator().manual_seed(round(100 * shift))
    found = {}
    for steps in ("1", "2"):
        values = torch.arange(COUNT * seeds) / 10 + shift + noise * torch.randn(COUNT * seeds, generator=generator)
        found[steps] = {judge: values.tolist() for judge in JUDGES}
        found[steps]["features"] = (torch.arange(COUNT * seeds)[:, None] * torch.ones(2) * (1 + shift)).tolist()
    return found


def test_differences_are_paired_by_picture():
    rows = feedback.compared([verdicts(0.5), verdicts(0.7)], verdicts(0.0), COUNT)
    for steps in ("1", "2"):
        for judge in JUDGES:
            row = rows[steps][judge]
            assert row["change"] == pytest.approx(0.6)
            assert row["after"] - row["before"] == pytest.approx(0.6)
            assert row["error"] == pytest.approx(0.0, abs=1e-6)  # every prompt changes alike, whatever it began with
            assert row["by_seed"] == pytest.approx([0.5, 0.7])
        assert rows[steps]["diversity"]["ratios"] == pytest.approx([1.5, 1.7])


def test_error_is_that_of_the_mean_over_prompts():
    before, after = verdicts(0.0), verdicts(0.5, noise=0.1)
    row = feedback.compared([after], before, COUNT)["1"]["likeness"]
    change = torch.tensor(after["1"]["likeness"]) - torch.tensor(before["1"]["likeness"])
    by_prompt = change.view(SEEDS, COUNT).mean(0)
    assert row["error"] == pytest.approx(float(by_prompt.std() / COUNT**0.5), rel=1e-5)


def test_one_picture_of_each_prompt_is_compared_with_its_own_and_tells_nothing_of_diversity():
    rows = feedback.compared([verdicts(0.5, seeds=1)], verdicts(0.0), COUNT)
    assert rows["1"]["retrieval"]["change"] == pytest.approx(0.5)
    assert "diversity" not in rows["1"]


def test_folder_of_an_arm_is_a_plain_name(tmp_path):
    options = feedback.argparse.Namespace(work=tmp_path)
    assert feedback.folder_of("two rewards, perceptual", 2, options) == tmp_path / "feedback" / "two-rewards-perceptual-2"
