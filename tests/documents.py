"""The repository's Markdown pages, taken apart: headings with their anchors, links, images, tables, code blocks, commands."""

import re
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[[^\[\]]*\]\(([^()\s]+)\)")
INLINE = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
COMMAND = re.compile(r"^(?:python|pip|accelerate|curl) ")


@dataclass
class Page:
    """One Markdown file.

    Args:
        path: inside the repository.

    Read from it are prose, the text without code blocks; blocks, (language, code) of each; headings, (level, title) of each;
    links and images, their targets; tables, (columns, rows) of each; commands, those in blocks and between backticks; and
    other_lines, what else blocks of commands hold.
    """

    path: Path

    def __post_init__(self) -> None:
        self.text = (ROOT / self.path).read_text(encoding="utf-8")
        self.blocks = FENCE.findall(self.text)
        self.prose = FENCE.sub("", self.text)
        self.headings = [(len(marks), title) for marks, title in HEADING.findall(self.prose)]
        found = LINK.findall(self.prose)
        self.links = [target for mark, target in found if not mark]
        self.images = [target for mark, target in found if mark]
        self.tables = _tables(self.prose)
        quoted = [line for language, code in self.blocks if language in {"", "bash"} for line in _joined(code)]
        self.commands = [line for line in quoted + INLINE.findall(self.prose) if COMMAND.match(line)]
        self.other_lines = [line for line in quoted if not COMMAND.match(line)]

    @property
    def anchors(self) -> set[str]:
        """The anchors of the headings, as GitHub makes them; a title that comes again gets a number."""
        anchors: set[str] = set()
        for _, title in self.headings:
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            number = next(n for n in range(len(self.headings)) if (f"{slug}-{n}" if n else slug) not in anchors)
            anchors.add(f"{slug}-{number}" if number else slug)
        return anchors


def _joined(code: str) -> list[str]:
    """Returns the lines of a block of commands without comments; a quote that is open at the end of a line goes on."""
    lines, waiting = [], ""
    for line in code.splitlines():
        waiting = f"{waiting}\n{line}" if waiting else line
        if waiting.count("'") % 2 == 0:
            lines.append(waiting.strip())
            waiting = ""
    return [line for line in lines if line and not line.startswith("#")]


def _tables(prose: str) -> list[tuple[int, int]]:
    tables, size, columns = [], 0, 0
    for line in [*prose.splitlines(), ""]:
        if line.startswith("|"):
            size, columns = size + 1, columns or line.count("|") - 1
        elif size:
            tables.append((columns, size - 2))
            size, columns = 0, 0
    return tables


def words_of(command: str) -> list[str]:
    """Returns a command's words as a shell splits them."""
    return shlex.split(command)


def _pages(*patterns: str) -> list[Page]:
    return [Page(path.relative_to(ROOT)) for pattern in patterns for path in sorted(ROOT.glob(pattern))]


ENGLISH, CHINESE = _pages("README.md", "README.zh-CN.md")
DOCS = [ENGLISH, CHINESE, *_pages("docs/*.md")]
PAGES = [*DOCS, *_pages("benchmarks/*.md", "demo/*/*.md", "examples/*.md", "tests/webui/*.md", "web/docs/*.md")]
each = partial(pytest.mark.parametrize, "page", ids=lambda page: page.path.as_posix())
