"""How far people agree with each other, beyond what chance alone would give."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

from .intervals import Share

NAN = float("nan")


@dataclass(frozen=True)
class Agreement:
    """How alike several people answer.

    Args:
        share: of all two answers to one question, those that are alike.
        kappa: the agreement beyond chance, 1 for full and 0 for none beyond chance; nan where everybody gives one answer.
        kind: "Cohen" for two people, "Fleiss" for more.
        questions: that two people or more have answered.
    """

    share: Share
    kappa: float
    kind: str
    questions: int


def agreement_of(answers: Sequence[dict[Hashable, str]]) -> Agreement | None:
    """Returns how far people agree, None where no two of them answered one question.

    Args: answers: of each person, {question: answer}.
    """
    questions = sorted({question for person in answers for question in person}, key=str)
    given = [[person[question] for person in answers if question in person] for question in questions]
    shared = [row for row in given if len(row) > 1]
    if not shared:
        return None
    alike = [one == other for row in shared for one, other in combinations(row, 2)]
    kind = "Cohen" if len(answers) == 2 else "Fleiss"
    kappa = cohen_kappa([(one, other) for one, other in shared]) if kind == "Cohen" else fleiss_kappa(shared)
    return Agreement(Share(sum(alike), len(alike)), kappa, kind, len(shared))


def cohen_kappa(answers: Sequence[tuple[Hashable, Hashable]]) -> float:
    """Returns Cohen's kappa of two people's answers, nan where chance alone makes them agree always.

    Source: Cohen, "A coefficient of agreement for nominal scales", 1960.
    Args: answers: of both people to each question, at least one.
    """
    count = len(answers)
    ones, others = Counter(one for one, _ in answers), Counter(other for _, other in answers)
    chance = sum(ones[kind] * others[kind] for kind in ones) / count**2
    return _beyond(sum(one == other for one, other in answers) / count, chance)


def fleiss_kappa(answers: Sequence[Sequence[Hashable]]) -> float:
    """Returns Fleiss' kappa, nan where chance alone makes people agree always; the number of answers may differ.

    Source: Fleiss, "Measuring nominal scale agreement among many raters", 1971.
    Args: answers: of each question, two or more.
    """
    counts = [Counter(row) for row in answers]
    alike = [sum(n * (n - 1) for n in count.values()) / (count.total() * (count.total() - 1)) for count in counts]
    total = sum(counts, Counter())
    chance = sum((n / total.total()) ** 2 for n in total.values())
    return _beyond(sum(alike) / len(alike), chance)


def _beyond(observed: float, chance: float) -> float:
    return (observed - chance) / (1 - chance) if chance < 1 else NAN
