"""The pages that people read: every link leads somewhere, the front page is one page, and says as much in both languages."""

import re
import unicodedata
from pathlib import Path

from hyper_sd.tests.documents import CHINESE, DOCS, ENGLISH, PAGES, ROOT, Page, each

LONGEST = 140  # columns of a line of prose
SWITCHES = {"README.md", "README.zh-CN.md"}


def problem_of_link(page: Page, target: str) -> str:
    """Returns what is wrong with a link, "" when its file and its heading exist; addresses of other sites are not asked."""
    if re.match(r"\w+://", target):
        return ""
    name, _, anchor = target.partition("#")
    path = (ROOT / page.path.parent / name).resolve() if name else ROOT / page.path
    if not path.exists():
        return f"{target} is not there"
    if not path.is_relative_to(ROOT):
        return f"{target} leads out of the repository"
    if anchor and anchor not in Page(path.relative_to(ROOT)).anchors:
        return f"{target}: that page has no such heading"
    return ""


@each(PAGES)
def test_links_and_images_lead_somewhere(page):
    problems = [problem_of_link(page, target) for target in page.links + page.images]
    assert not any(problems), [problem for problem in problems if problem]


def test_broken_link_is_found():
    assert "not there" in problem_of_link(ENGLISH, "docs/nowhere.md")
    assert "no such heading" in problem_of_link(ENGLISH, "docs/README.md#nowhere")
    assert "no such heading" in problem_of_link(ENGLISH, "#nowhere")
    assert "leads out" in problem_of_link(ENGLISH, "..")
    assert problem_of_link(ENGLISH, "docs/README.md#documentation") == ""


def test_every_page_of_docs_is_reached_from_the_index():
    index = next(page for page in DOCS if page.path == Path("docs", "README.md"))
    reached = {Path("docs", target) for target in index.links} | {index.path}
    assert {page.path for page in DOCS if page.path.parts[0] == "docs"} <= reached
    assert "docs/README.md" in ENGLISH.links


@each([ENGLISH, CHINESE])
def test_front_page_is_one_page(page):
    assert len(page.text.splitlines()) <= 110


@each(DOCS)
def test_lines_of_prose_are_short(page):
    def width(line: str) -> int:
        return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in line)

    lines = [line for line in page.prose.splitlines() if not line.startswith(("|", "!["))]
    assert not [line for line in lines if width(line) > LONGEST]


def test_front_page_begins_with_the_two_commands():
    assert ENGLISH.blocks[0] == ("", "python install.py demo\npython install.py test\n")


def test_both_languages_have_the_same_parts():
    assert [level for level, _ in ENGLISH.headings] == [level for level, _ in CHINESE.headings]
    assert ENGLISH.blocks == CHINESE.blocks
    assert ENGLISH.commands == CHINESE.commands
    assert ENGLISH.images == CHINESE.images
    assert ENGLISH.tables == CHINESE.tables
    assert len(ENGLISH.tables) == 2


def test_both_languages_link_to_the_same_places():
    own, other = ([re.sub("^#.*", "#", link) for link in page.links if link not in SWITCHES] for page in (ENGLISH, CHINESE))
    assert own == other
    assert SWITCHES.intersection(ENGLISH.links) == {"README.zh-CN.md"}
    assert SWITCHES.intersection(CHINESE.links) == {"README.md"}


@each([ENGLISH, CHINESE])
def test_front_page_names_the_packages_of_the_run_time(page):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = re.search(r"^dependencies = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)[1]
    paragraph = next(part for part in page.text.split("\n\n") if "safetensors" in part and "pillow" in part)
    assert set(re.findall(r'"(\w+)', needed)) <= set(re.findall(r"[A-Za-z_]+", paragraph))
