"""What is drawn in the sweeps, and what the scores say: the best option of a row, what cannot be told from it, tables, plot."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from ..samplers.timesteps import LAST_TIMESTEP

STRENGTHS, STEPS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25), tuple(range(1, 9))
ETAS, DEFAULT_ETA = (0.0, 0.3, 0.6, 1.0), 0.3
STARTS = (700, 750, 800, 850, 900, 950, LAST_TIMESTEP)  # of a single step
GROUPS = 16  # of prompts, left out one at a time
DOUBT = 2.0  # standard errors within which two options are not told apart: about 95 % with 16 groups
METRICS = {"kid": 1, "top1": -1}  # 1: lower is better

Cell = dict[str, list[float]]  # metric -> the value on all prompts, then without each group
Cells = dict[str, dict[str, Cell]]  # Draw.key -> seed -> cell


@dataclass(frozen=True)
class Draw:
    """One way to draw every prompt.

    Args:
        lora: its name; None for the base with guidance.
        steps: model evaluations.
        strength: of the LoRA.
        num_segments: of the sampler.
        eta: of the sampler, 0 deterministic .. 1.
        start_timestep: where the first step is, from noise of deviation 1 in the model's own scale.
    """

    lora: str | None
    steps: int
    strength: float = 1.0
    num_segments: int = 1
    eta: float = DEFAULT_ETA
    start_timestep: int = LAST_TIMESTEP

    @property
    def key(self) -> str:
        """The name of what is drawn; two draws that give the same pictures have the same."""
        if self.lora is None:
            return f"base, {self.steps} steps"
        # a single step, and steps that span their segments, are drawn alike at every eta
        eta = 0.0 if self.steps in (1, self.num_segments) else self.eta
        start = f", from {self.start_timestep}" if self.start_timestep < LAST_TIMESTEP else ""
        return f"{self.lora}, {self.steps} steps, strength {self.strength:g}, {self.num_segments} segments, eta {eta:g}{start}"


Sweep = dict[int, dict[str, Draw]]  # steps -> option -> how it is drawn


def strength_sweep(
    lora: str, steps: Sequence[int], strengths: Sequence[float], num_segments: int = 1, eta: float = DEFAULT_ETA
) -> Sweep:
    """Returns every strength at every step count that visits all segments."""
    return {n: {f"{s:g}": Draw(lora, n, s, num_segments, eta) for s in strengths} for n in steps if n >= num_segments}


def eta_sweep(lora: str, steps: Sequence[int], etas: Sequence[float], num_segments: int = 1) -> Sweep:
    """Returns every eta where it has an effect."""
    rows = [n for n in steps if n > num_segments]
    return {n: {f"{eta:g}": Draw(lora, n, 1.0, num_segments, eta) for eta in etas} for n in rows}


def start_sweep(loras: dict[str, str], starts: Sequence[int] = STARTS) -> Sweep:
    """Returns every start timestep of a single step.

    Args:
        loras: name in the tables -> the adapter set.
        starts: the timesteps.
    """
    return {1: {f"{name}, {t}": Draw(lora, 1, start_timestep=t) for name, lora in loras.items() for t in starts}}


def file_sweep(etas: Sequence[float] = ETAS) -> Sweep:
    """Returns the demo model's files against each other: at their own steps, and at the counts that no file is made for.

    "segments kept": the file's own, the widest divided; "trailing": one segment a step, as a host's plain DDIM would walk.
    """
    rows: Sweep = {}
    for n in (2, 3, 4, 5, 6, 7, 8):
        rows[n] = {f"unified, eta {eta:g}": Draw("1", n, eta=eta) for eta in etas}
        rows[n] |= {f"{n}-step LoRA": Draw(str(n), n, num_segments=n)} if n in (2, 4, 8) else {}
        if n in (3, 5, 6, 7):
            below = 2 if n < 4 else 4
            rows[n][f"{below}-step LoRA, segments kept"] = Draw(str(below), n, num_segments=below)
            rows[n]["8-step LoRA, trailing"] = Draw("8", n, num_segments=n)
        if n == 3:
            rows[n]["4-step LoRA, trailing"] = Draw("4", n, num_segments=n)
        if n in (5, 6, 7):
            rows[n]["8-step LoRA, 4 segments"] = Draw("8", n, num_segments=4)
    return rows


def draws_of(sweeps: dict[str, Sweep]) -> list[Draw]:
    """Returns every draw that the sweeps need, once each."""
    rows = chain.from_iterable(sweep.values() for sweep in sweeps.values())
    return list({draw.key: draw for row in rows for draw in row.values()}.values())


def paired_kid(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns the kernel inception distance of two sets that show the same prompts in the same order.

    evaluation.metrics.kid compares every pair across the sets. Two drawings of one prompt are more alike than those of two
    prompts, which pulls the distance of small sets below 0. Without such pairs equal models have 0 on average.

    Source: Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012, Eq. 4; the kernel is KID's, arXiv 1801.01401.

    Args:
        found: features, float [n, d], n at least 2.
        reference: features, float [n, d].
    """
    x, y = found.double(), reference.double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    h = kernel(x, x) + kernel(y, y) - kernel(x, y) - kernel(y, x)
    return float((h.sum() - h.trace()) / (len(h) * (len(h) - 1)))


def replicates(score: Callable[[list[int]], float], count: int) -> list[float]:
    """Returns a score on all prompts, then without each group of them.

    Args:
        score: returns the score on the prompts with the given numbers.
        count: of the prompts.
    """
    groups = min(GROUPS, count)
    return [score(list(range(count)))] + [score([i for i in range(count) if i % groups != g]) for g in range(groups)]


def error_of(values: Sequence[float]) -> float:
    """Returns the jackknife's standard error.

    Source: Efron and Stein, "The Jackknife Estimate of Variance", 1981.

    Args:
        values: as `replicates` returns them.
    """
    without = values[1:]
    middle = statistics.mean(without)
    return ((len(without) - 1) / len(without) * sum((v - middle) ** 2 for v in without)) ** 0.5


def select(options: dict[str, list[list[float]]], sign: int = 1) -> dict:
    """Returns the best option and those that cannot be told from it.

    All options share prompts and noise, so the error is that of the difference to the best: a jackknife over the prompts, of
    means over the seeds. The deviation between three seeds would say little, and nothing about the choice of prompts.

    Args:
        options: by name what `replicates` returned for each seed.
        sign: 1 where lower is better, -1 where higher is.
    Returns: "best"; "alike", in the order of the options, the best among them; "options": mean and deviation over the seeds,
        "behind" the best and the "error" of that.
    """
    means = {name: [statistics.mean(seeds) for seeds in zip(*rows, strict=True)] for name, rows in options.items()}
    best = min(means, key=lambda name: sign * means[name][0])
    table = {}
    for name, rows in options.items():
        gaps = [sign * (mine - least) for mine, least in zip(means[name], means[best], strict=True)]
        table[name] = {
            "mean": means[name][0],
            "deviation": statistics.stdev(row[0] for row in rows) if len(rows) > 1 else 0.0,
            "behind": gaps[0],
            "error": error_of(gaps),
        }
    alike = [name for name, row in table.items() if row["behind"] <= DOUBT * row["error"] or name == best]
    return {"best": best, "alike": alike, "options": table}


def scores_of(draw: Draw, cells: Cells, metric: str) -> list[list[float]]:
    """Returns a draw's replicates, seed by seed."""
    return [cell[metric] for cell in cells[draw.key].values()]


def report(sweeps: dict[str, Sweep], cells: Cells) -> dict[str, dict[int, dict[str, dict]]]:
    """Returns sweep -> steps -> metric -> what `select` says."""
    return {
        name: {
            n: {m: select({o: scores_of(d, cells, m) for o, d in row.items()}, sign) for m, sign in METRICS.items()}
            for n, row in sweep.items()
        }
        for name, sweep in sweeps.items()
    }


def _span(choice: dict) -> str:
    alike = choice["alike"]
    return alike[0] if len(alike) == 1 else f"{alike[0]} to {alike[-1]}"


def _cell(row: dict) -> str:
    return f"{row['mean']:.4f} ± {row['deviation']:.4f}"


def strength_table(rows: dict[int, dict[str, dict]], shown: Sequence[str] = ("0.75", "1")) -> str:
    """Returns a Markdown table: best strength per step count, the span that cannot be told from it, KID there and elsewhere."""
    lines = [
        "| steps | best strength | not told from it | KID at the best | " + " | ".join(f"at {s}" for s in shown)
        + " | best by retrieval | not told from it |",
        "|" + "---|" * (6 + len(shown)),
    ]  # fmt: skip
    for n, row in rows.items():
        kid, top1 = row["kid"], row["top1"]
        values = [kid["best"], _span(kid), _cell(kid["options"][kid["best"]])]
        values += [_cell(kid["options"][s]) if s in kid["options"] else "" for s in shown]
        lines.append("| " + " | ".join([str(n), *values, top1["best"], _span(top1)]) + " |")
    return "\n".join(lines)


def option_table(rows: dict[int, dict[str, dict]]) -> str:
    """Returns a Markdown table with a line for each option: KID, what it is behind the best, retrieval. The best is bold."""
    lines = ["| steps | option | KID | behind the best | retrieval, top 1 |", "|---|---|---|---|---|"]
    for n, row in rows.items():
        for name, cell in row["kid"]["options"].items():
            found = row["top1"]["options"][name]
            alike = "**" if name in row["kid"]["alike"] else ""
            behind = "" if name == row["kid"]["best"] else f"{cell['behind']:.4f} ± {cell['error']:.4f}"
            top1 = f"{100 * found['mean']:.1f} ± {100 * found['deviation']:.1f} %"
            lines.append(f"| {n} | {alike}{name}{alike} | {_cell(cell)} | {behind} | {top1} |")
    return "\n".join(lines)


def plot(rows: dict[int, dict[str, dict]], path: Path, title: str) -> None:
    """Draws KID over strength, a panel for each step count; the bars are the error of the difference to the best."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(3.4 * columns, 3 * lines), layout="constrained", squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, (n, row) in zip(axes.flat, rows.items(), strict=False):
        kid, table = row["kid"], row["kid"]["options"]
        strengths, alike = [float(s) for s in table], [float(s) for s in kid["alike"]]
        heights, errors = ([cell[part] for cell in table.values()] for part in ("mean", "error"))
        axis.axvspan(min(alike) - 0.03, max(alike) + 0.03, color="C2", alpha=0.15)
        axis.errorbar(strengths, heights, errors, marker="o", capsize=3)
        axis.plot(float(kid["best"]), table[kid["best"]]["mean"], marker="*", markersize=14, color="C2")
        axis.set_title(f"{n} step{'s' * (n > 1)}: {kid['best']}, band {_span(kid)}", fontsize=10)
        axis.set_xlabel("strength")
        axis.set_ylabel("KID to the base's many steps", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
