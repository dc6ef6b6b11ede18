"""What the votes of many people on one comparison say, and what they do not say."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .agreement import Agreement, agreement_of
from .comparison import Comparison
from .intervals import Interval, Share
from .vote_file import Ballot
from .votes import TIE, counted, self_agreement
from .win_rates import Meeting, Strength, can_be_ranked, meetings, outcomes, strengths

NEEDED_AT_MOST = 20_000  # votes; where more were needed, the difference is too small to be looked for
SMALL = 0.05  # a share nearer to one half than this is a small difference


@dataclass(frozen=True)
class VoteReport:
    """Everything that was counted.

    Args:
        comparison: its id.
        arms: in order.
        voters: how many people voted.
        answers: that count: without skipped pairs, and repeated pairs once.
        skipped: pairs that somebody saw and skipped.
        prompts: different ones with an answer; pictures without one count each for themselves.
        meetings: of each two arms.
        strengths: of the arms where three or more are on one scale, the strongest first.
        selves: how often each person answered a repeated pair alike, by voter.
        others: how far people agree with each other, None where no two answered the same.
        left: how often the left picture was chosen where one was.
    """

    comparison: str
    arms: tuple[str, ...]
    voters: int
    answers: int
    skipped: int
    prompts: int
    meetings: tuple[Meeting, ...]
    strengths: tuple[Strength, ...]
    selves: dict[str, Share]
    others: Agreement | None
    left: Share

    def to_json(self) -> dict:
        """Returns the report as JSON can hold it; what is not known is null."""
        content = asdict(self)
        content["meetings"] = [_meeting(meeting) for meeting in self.meetings]
        content["selves"] = {voter: _share(share) for voter, share in self.selves.items()}
        content["left"] = _share(self.left)
        if self.others:
            content["others"]["share"] = _share(self.others.share)
        return _without_nan({**content, "sentences": sentences(self)})


def fullest(ballots: Sequence[Ballot]) -> list[Ballot]:
    """Returns one ballot of each person: of those who saved several times, the one with most votes, the later of two alike."""
    kept: dict[str, Ballot] = {}
    for ballot in ballots:
        if ballot.voter not in kept or len(ballot.votes) >= len(kept[ballot.voter].votes):
            kept[ballot.voter] = ballot
    return list(kept.values())


def report_of(comparison: Comparison, ballots: Sequence[Ballot], seed: int = 0, ranks: bool = True) -> VoteReport:
    """Returns what a comparison's ballots say; a person who saved several times counts once.

    Args:
        comparison: what was voted on.
        ballots: of its voters.
        seed: of the bootstraps.
        ranks: whether more than two arms get strengths, too.
    Raises: EvaluationError for strengths without the package choix.
    """
    ballots = fullest(ballots)
    said = [counted(comparison, ballot) for ballot in ballots]
    found = outcomes(comparison, ballots)
    ranked = strengths(comparison.arms, found, seed=seed) if ranks and can_be_ranked(found) else []
    choices = [vote.choice for ballot in ballots for vote in ballot.votes]
    return VoteReport(
        comparison=comparison.id,
        arms=comparison.arms,
        voters=len(ballots),
        answers=len(found),
        skipped=choices.count("skip"),
        prompts=len({outcome.prompt for outcome in found}),
        meetings=tuple(meetings(comparison.arms, found, seed)),
        strengths=tuple(ranked),
        selves={ballot.voter: self_agreement(comparison, ballot) for ballot in ballots},
        others=agreement_of([_by_arm(comparison, answers) for answers in said]),
        left=Share(choices.count("left"), choices.count("left") + choices.count("right")),
    )


def sentences(report: VoteReport) -> list[str]:
    """Returns in plain sentences what can be said from the votes, and what cannot."""
    if not report.answers:
        return ["Nothing can be said: no pair has an answer."]
    said = [_about_meeting(meeting) for meeting in report.meetings]
    if report.strengths and any(math.isnan(strength.interval.low) for strength in report.strengths):
        order = ", ".join(f'"{s.arm}" {s.value:+.2f}' for s in report.strengths)
        said.append(
            f"Strengths in the Bradley-Terry model: {order}. Every prompt gave the same answers, "
            "so how sure these are is not known."
        )
    elif report.strengths:
        order = ", ".join(
            f'"{s.arm}" {s.value:+.2f} ({s.interval.low:+.2f} to {s.interval.high:+.2f})' for s in report.strengths
        )
        said.append(f"Strengths in the Bradley-Terry model, with 95 % intervals: {order}.")
    if len(report.meetings) > 1:
        said.append(
            f"{len(report.meetings)} pairs of arms were looked at. Of 20 such intervals one misses the truth by chance alone."
        )
    said.append(_about_selves(report))
    if report.others:
        said.append(_about_others(report.others))
    if report.left.total and not report.left.interval.low <= 0.5 <= report.left.interval.high:
        said.append(
            f"The left picture was chosen in {_percent(report.left.value)} of the decisions. The sides are shuffled, so this "
            "favours no arm, but such votes are partly habit."
        )
    if report.voters == 1:
        said.append("All votes are one person's: they tell this person's taste and nothing about other people.")
    said.append(f"The pictures are of {report.prompts} prompts; about other kinds of pictures the votes say nothing.")
    return said


def _by_arm(comparison: Comparison, answers: dict[int, str]) -> dict[int, str]:
    """Returns a person's answers as arms, so that people who saw a pair on other sides are comparable."""
    return {number: answer if answer == TIE else comparison.pictures[answer].arm for number, answer in answers.items()}


def _about_meeting(meeting: Meeting) -> str:
    share, interval = meeting.share, meeting.interval
    one, other = (meeting.one, meeting.other) if share.value >= 0.5 else (meeting.other, meeting.one)
    value = max(share.value, 1 - share.value)
    low, high = (interval.low, interval.high) if one == meeting.one else (1 - interval.high, 1 - interval.low)
    ties = f", {meeting.ties} of them ties that count half" if meeting.ties else ""
    counts = f"{_percent(value)} of {share.total} answers{ties}; 95 % interval {_percent(low)} to {_percent(high)}"
    if low > 0.5:
        return f'"{one}" is liked better than "{other}": {counts}.'
    if high <= 0.5 + SMALL and low >= 0.5 - SMALL:
        return f'"{one}" and "{other}" are liked alike: {counts}. Shares beyond {_percent(0.5 + SMALL)} are ruled out.'
    needed = math.ceil(0.25 * (1.96 / (value - 0.5)) ** 2) if value > 0.5 else math.inf
    more = f" If that share is the true one, about {needed} answers are needed to show it." if needed <= NEEDED_AT_MOST else ""
    return f'Whether "{one}" or "{other}" is liked better cannot be said: {counts}.{more}'


def _about_selves(report: VoteReport) -> str:
    shares = [share for share in report.selves.values() if share.total]
    if not shares:
        return "No repeated pair was answered twice, so it is not known how steady the voters are."
    pooled = Share(sum(share.count for share in shares), sum(share.total for share in shares))
    low, high = map(_percent, pooled.interval)
    who = "The voter" if report.voters == 1 else "Voters"
    text = f"{who} answered {int(pooled.count)} of {pooled.total} repeated pairs as the first time ({low} to {high})."
    return text if pooled.interval.low > 0.5 else f"{text} That is not surely better than guessing."


def _about_others(others: Agreement) -> str:
    kappa = "" if math.isnan(others.kappa) else f", {others.kind}'s kappa {others.kappa:.2f} (0 is chance, 1 is full agreement)"
    return f"Two people give the same answer to a pair in {_percent(others.share.value)} of {others.share.total} cases{kappa}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _share(share: Share) -> dict:
    return {"count": share.count, "total": share.total, "value": share.value, "interval": share.interval}


def _meeting(meeting: Meeting) -> dict:
    return {**asdict(meeting), "share": _share(meeting.share), "interval": meeting.interval}


def _without_nan(content):
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, Interval):
        return {"low": _without_nan(content.low), "high": _without_nan(content.high)}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
