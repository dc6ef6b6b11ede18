import pytest
import torch
from hyper_sd.errors import ScheduleError, TrainingError
from hyper_sd.training.segments import sample_timesteps, solver_grid
from hypothesis import given
from hypothesis import strategies as st

GRID = solver_grid(50)

# By hand: index i stands for time i + 1 of 1000, so the edges of k = 8 are the times 125, 250, .. and the indices 124, 249, ..
EDGES = {
    1: {999: 0, 519: 0, 39: 0},
    2: {999: 499, 519: 499, 499: 0, 39: 0},
    4: {999: 749, 759: 749, 739: 499, 519: 499, 499: 249, 259: 249, 239: 0, 39: 0},
    8: {999: 874, 899: 874, 859: 749, 759: 749, 739: 624, 639: 624, 619: 499, 519: 499, 499: 374, 399: 374, 359: 249,
        259: 249, 239: 124, 139: 124, 119: 0, 39: 0},
}  # fmt: skip
# Pairs with an edge strictly between them, such as 879 -> 859 around 874; 519 -> 499 ends on its edge, 499.
STRADDLING = {1: [], 2: [], 4: [259, 759], 8: [139, 259, 379, 639, 759, 879]}
ENDING_ON_EDGE = {1: [], 2: [519], 4: [519], 8: [519]}


def draw_all(num_segments, grid=GRID, endpoint="random", batch=20000):
    drawn = sample_timesteps(batch, num_segments, grid, torch.Generator().manual_seed(0), endpoint)
    return torch.stack(drawn, 1).unique(dim=0).tolist()


def test_solver_grid_of_fifty_is_19_to_999():
    assert list(range(19, 1000, 20)) == GRID
    assert len(GRID) == 50


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_t_b_matches_the_table_by_hand(k):
    t_b = {n: b for n, _, b, _ in draw_all(k)}
    for timestep, edge in EDGES[k].items():
        assert t_b[timestep] == min(edge, timestep - 20), timestep


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_straddling_pairs_are_clipped_to_the_lower_neighbour_and_no_others(k):
    clipped = {n for n, prev, b, _ in draw_all(k) if b == prev}
    assert sorted(clipped) == sorted(STRADDLING[k] + ENDING_ON_EDGE[k])
    assert all(end == prev for n, prev, _, end in draw_all(k) if n in clipped)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_every_point_of_a_short_interval_is_drawn_and_nothing_outside(k):
    wanted = {(n, end) for n, prev, b, _ in draw_all(k) for end in range(b, prev + 1) if n <= 59}
    drawn = {(n, end) for n, _, _, end in draw_all(k, batch=60000) if n <= 59}
    assert drawn == wanted


def test_t_end_is_uniform_in_its_interval():
    generator = torch.Generator().manual_seed(3)
    t_n, t_prev, t_b, t_end = sample_timesteps(200_000, 4, GRID, generator)
    share = (t_end - t_b + 0.5) / (t_prev - t_b + 1)
    wide = share[t_prev - t_b > 100]
    assert abs(wide.mean() - 0.5) < 0.005
    assert abs(wide.var() - 1 / 12) < 0.002
    counts = torch.bincount(t_n // 20, minlength=50)[1:]
    assert counts.min() > 0.9 * 200_000 / 49
    assert counts.max() < 1.1 * 200_000 / 49


def test_boundary_endpoint_is_the_segment_edge():
    assert all(end == b for _, _, b, end in draw_all(4, endpoint="boundary"))


def test_zero_in_front_of_the_grid_adds_the_lowest_pair():
    pairs = {(n, prev, b, end) for n, prev, b, end in draw_all(8, [0, *GRID]) if n == 19}
    assert pairs == {(19, 0, 0, 0)}


@given(
    k=st.integers(1, 50),
    steps=st.sampled_from([2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500, 1000]),
    batch=st.integers(1, 64),
    seed=st.integers(0, 2**31),
    endpoint=st.sampled_from(["random", "boundary"]),
)
def test_order_holds_for_any_grid(k, steps, batch, seed, endpoint):
    grid = solver_grid(steps)
    drawn = sample_timesteps(batch, k, grid, torch.Generator().manual_seed(seed), endpoint)
    t_n, t_prev, t_b, t_end = drawn
    assert all(t.shape == (batch,) and not t.is_floating_point() for t in drawn)
    assert ((t_b <= t_end) & (t_end <= t_prev) & (t_prev < t_n)).all()
    assert all(grid[grid.index(n) - 1] == p for n, p in zip(t_n.tolist(), t_prev.tolist(), strict=True))


def test_same_generator_state_draws_the_same():
    first, second = (sample_timesteps(9, 4, GRID, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("steps", [0, 1, 3, 33, 1001])
def test_solver_grid_refuses_what_does_not_divide(steps):
    with pytest.raises(TrainingError, match="must divide 1000"):
        solver_grid(steps)


def test_bad_arguments_are_refused():
    with pytest.raises(TrainingError, match="must increase"):
        sample_timesteps(1, 1, [19])
    with pytest.raises(TrainingError, match="must increase"):
        sample_timesteps(1, 1, [39, 19])
    with pytest.raises(TrainingError, match="endpoint"):
        sample_timesteps(1, 1, GRID, endpoint="middle")
    with pytest.raises(ScheduleError, match="num_segments"):
        sample_timesteps(1, 0, GRID)
