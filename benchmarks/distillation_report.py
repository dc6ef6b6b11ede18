"""What the distillation benchmark's scores say: means over seeds, one table for each question, the bars, and the plot."""

from pathlib import Path

from .distillation_arms import ETAS, STEPS, Draw
from .measure import over_seeds

Scores = dict[str, list[dict[str, dict[str, float]]]]
DISTANCES, DEFAULT_ETA, CONVERGED = ("kid", "energy"), 0.3, "50"
BARS = {1: 0.5, 2: 0.5, 4: 0.8}  # largest share of the teacher's own distance in as many steps
OBJECTIVES = ("progressive", "direct_1", "lcm", "pcm_progressive")
LOSSES = ("progressive", "adversarial", "scheduled", "scheduled_data")


def spread(values: list[float]) -> dict:
    """Returns mean and standard deviation over the seeds, and the values themselves."""
    return {**over_seeds(values), "values": values}


def summary(scores: Scores) -> dict[str, dict[str, dict[str, dict]]]:
    """Returns scores by arm, draw and metric, spread over the seeds."""
    return {
        arm: {key: {m: spread([seed[key][m] for seed in seeds]) for m in seeds[0][key]} for key in seeds[0]}
        for arm, seeds in scores.items()
    }


def _brief(cells: dict[str, dict]) -> dict[str, dict]:
    return {name: {"mean": cell["mean"], "deviation": cell["deviation"]} for name, cell in cells.items()}


def unified(steps: int, eta: float = DEFAULT_ETA) -> str:
    """Returns the key of a draw with one segment."""
    return Draw(steps, 1, eta if steps > 1 else 0.0).key


def against_teacher(scores: Scores, metric: str) -> dict:
    """Question a: distances of the teacher, the n-step students and the unified one, by steps.

    Each student's "share" is that of the teacher's distance in as many steps, of the means over the seeds.
    """
    found = summary(scores)
    table = {}
    for n in STEPS:
        taught = found["teacher"][str(n)][metric]
        row = _brief({"teacher": taught})
        for name, arm, key in (("n_step", f"direct_{n}", Draw(n, n).key), ("unified", "progressive", unified(n))):
            mine = found[arm][key][metric]
            row |= _brief({name: mine})
            row[name]["share"] = mine["mean"] / taught["mean"]
        table[n] = row
    return table


def bars(scores: Scores) -> list[dict]:
    """Returns every bar with what was measured and whether it is met."""
    return [
        {"steps": n, "student": name, "distance": metric, "bar": bar, "share": share, "met": share <= bar}
        for metric in DISTANCES
        for n, bar in BARS.items()
        for name in ("n_step", "unified")
        for share in [against_teacher(scores, metric)[n][name]["share"]]
    ]


def report(scores: Scores) -> dict:
    """Returns the means, a table for each question that the arms at hand answer, and the bars."""
    found = summary(scores)
    result: dict = {"scores": found}
    tables = result["tables"] = {}
    found = {arm: {key: _brief(cells) for key, cells in draws.items()} for arm, draws in found.items()}
    if all(f"direct_{n}" in found for n in STEPS) and "progressive" in found:
        tables["a_against_teacher"] = {metric: against_teacher(scores, metric) for metric in DISTANCES}
        result["bars"] = bars(scores)
    tables["b_objectives"] = {
        f"eta {eta:g}": {arm: {n: found[arm][unified(n, eta)] for n in STEPS} for arm in OBJECTIVES if arm in found}
        for eta in (DEFAULT_ETA, 1.0)
    }
    tables["b_four_segments"] = {arm: found[arm] for arm in ("direct_4", "pcm_4") if arm in found}
    if "progressive" in found:
        tables["c_eta"] = {n: {f"{eta:g}": found["progressive"][unified(n, eta)] for eta in ETAS} for n in (4, 8)}
    tables["d_adversarial"] = {arm: {n: found[arm][unified(n)] for n in (1, 2, 4)} for arm in LOSSES if arm in found}
    return result


def plot(result: dict, path: Path) -> None:
    """Draws a panel for each question; where the arms at hand do not answer it, the panel is empty."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    tables = result["tables"]
    figure, axes = pyplot.subplots(2, 3, figsize=(14, 8), layout="constrained")
    for axis, (metric, rows) in zip(axes[0], tables.get("a_against_teacher", {}).items(), strict=False):
        for name in ("teacher", "n_step", "unified"):
            _line(axis, STEPS, [rows[n][name] for n in STEPS], name.replace("_", "-"))
        floor = result["scores"]["teacher"][CONVERGED][metric]["mean"]
        axis.axhline(max(floor, 1e-5), color="grey", linestyle=":", label="teacher, 50 steps")
        _dress(axis, f"a. {metric} to the converged teacher", "steps")
    for (name, rows), style in zip(tables["b_objectives"].items(), ("-", "--"), strict=True):
        for position, (arm, row) in enumerate(rows.items()):
            _line(axes[0][2], STEPS, [row[n]["kid"] for n in STEPS], f"{arm}, {name}", f"C{position}", style)
    _dress(axes[0][2], "b. objectives, kid", "steps")
    for n, row in tables.get("c_eta", {}).items():
        _line(axes[1][0], ETAS, [row[f"{eta:g}"]["kid"] for eta in ETAS], f"{n} steps")
        _line(axes[1][1], ETAS, [row[f"{eta:g}"]["detail"] for eta in ETAS], f"{n} steps")
    _dress(axes[1][0], "c. eta, kid", "eta", log=False)
    axes[1][1].axhline(1, color="grey", linestyle=":", label="teacher, 50 steps")
    _dress(axes[1][1], "c. eta, fine energy beside the converged teacher's", "eta", log=False)
    for arm, row in tables["d_adversarial"].items():
        _line(axes[1][2], list(row), [row[n]["kid"] for n in row], arm)
    _dress(axes[1][2], "d. adversarial loss, kid", "steps")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _line(axis, x, cells: list[dict], label: str, colour: str | None = None, style: str = "-") -> None:
    heights, errors = [max(c["mean"], 1e-5) for c in cells], [c["deviation"] for c in cells]
    axis.errorbar(x, heights, errors, marker="o", capsize=3, label=label, color=colour, linestyle=style)


def _dress(axis, title: str, under: str, log: bool = True) -> None:
    axis.set_title(title)
    axis.set_xlabel(under)
    if log:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(STEPS, [str(n) for n in STEPS])
    axis.legend(fontsize=8)
