"""The documentation is complete and its links lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADRS = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
INDEX = ROOT / "docs/adr/README.md"
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "BENCHMARKS.md"]
SECTIONS = ["Context", "Decision", "Consequences", "What else was tried"]

GLOSSARY = ROOT / "docs/glossary.md"

_ENTRY = re.compile(r"^- (\d+)\. \[(.+)\]\((.+)\)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def _names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("adr", ADRS, ids=_names(ADRS))
def test_adr_has_number_title_and_sections(adr: Path) -> None:
    text = adr.read_text()
    number = int(adr.name.split("-")[0])

    assert text.startswith(f"# {number}. "), f"{adr.name}: the first line must be `# {number}. <the decision>`"
    assert re.match(r"[^\n]*\n\n20\d\d-\d\d-\d\d, accepted\.\n", text), f"{adr.name}: needs its date and status"
    found = re.findall(r"^\*\*([^*]+?)[.:]?\*\*", text, re.MULTILINE)
    sections = [name for name in found if name in SECTIONS]
    assert sections == SECTIONS, f"{adr.name}: needs {SECTIONS} in this order, each as `**Context.**`; has {sections}"


def test_adrs_are_few_and_numbered_from_one() -> None:
    numbers = [int(adr.name.split("-")[0]) for adr in ADRS]

    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) <= 60


def test_index_lists_each_adr_once_with_its_title() -> None:
    listed = sorted((int(number), title, name) for number, title, name in _ENTRY.findall(INDEX.read_text()))
    expected = sorted(_entry(adr) for adr in ADRS)

    missing = [
        f"- {number}. [{title}]({name})" for number, title, name in expected if (number, title, name) not in listed
    ]
    assert not missing, "add it to docs/adr/README.md under its subject:\n" + "\n".join(missing)
    surplus = [entry for entry in listed if entry not in expected]
    assert not surplus, f"docs/adr/README.md lists ADRs that do not exist, or by another title: {surplus}"
    assert listed == expected, "docs/adr/README.md lists an ADR twice"


def _entry(adr: Path) -> tuple[int, str, str]:
    number, _, title = adr.read_text().split("\n", 1)[0].removeprefix("# ").partition(". ")
    return int(number), title, adr.name


@pytest.mark.parametrize("page", PAGES, ids=_names(PAGES))
def test_relative_links_lead_to_files(page: Path) -> None:
    links = _LINK.findall(_CODE.sub("", page.read_text()))
    paths = [link.split("#")[0] for link in links if "://" not in link and not link.startswith("#")]

    broken = [path for path in paths if not (page.parent / path).exists()]
    assert not broken, f"{page.relative_to(ROOT)} links to files that do not exist: {broken}"


@pytest.mark.parametrize("page", PAGES, ids=_names(PAGES))
def test_links_to_headings_lead_to_them(page: Path) -> None:
    links = [link.partition("#") for link in _LINK.findall(_CODE.sub("", page.read_text())) if "://" not in link]
    broken = []
    for path, _, heading in links:
        target = page.parent / path if path else page
        if heading and target.suffix == ".md" and heading not in _anchors(target):
            broken.append(f"{path}#{heading}")
    assert not broken, f"{page.relative_to(ROOT)} links to headings that do not exist: {broken}"


@cache
def _anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


def test_index_of_the_docs_lists_each_page_once() -> None:
    listed = _LINK.findall((ROOT / "docs/README.md").read_text())
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(listed) == sorted(pages | {"adr/README.md"})


def test_glossary_defines_each_word_once() -> None:
    words = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", GLOSSARY.read_text(), re.MULTILINE)
    words = [word for word in words if word != "word"]

    assert words
    assert sorted(set(words)) == sorted(words)


@pytest.mark.parametrize("page", PAGES, ids=_names(PAGES))
def test_functions_named_in_docs_exist(page: Path) -> None:
    for path, name in re.findall(r"`([\w/]+\.py):(\w+)`", page.read_text()):
        source = (ROOT / "src/builderd" / path).read_text()
        assert re.search(rf"^\s*(?:async )?(?:def|class) {name}\b", source, re.MULTILINE), f"{path} has no {name}"


def test_each_test_in_the_table_of_attacks_exists() -> None:
    text = (ROOT / "docs/attacks.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "`test_" in line]
    named = {name for row in rows for name in re.findall(r"`(test_\w+)`", row[2])}
    defined = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))
    assert len(rows) >= 25
    assert not named - defined, "a test was renamed or removed: change docs/attacks.md too"


@pytest.mark.root
def test_keepalived_takes_the_example_for_a_cluster(tmp_path: Path) -> None:
    """In a network of its own, which has an interface of the name that the example has."""
    page = (ROOT / "docs/cluster.md").read_text()
    [example] = re.findall(r"^```\n(global_defs .*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "keepalived.conf").write_text(example)
    script = 'ip link add eth0 type veth && exec keepalived --config-test="$0/report" -f "$0/keepalived.conf"'
    words = ["unshare", "--net", "sh", "-c", script, str(tmp_path)]
    checked = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    report = tmp_path / "report"
    assert checked.returncode == 0, checked.stderr + (report.read_text() if report.exists() else "")


#: What an engineer new here searches for, and the file that answers, or the folder's own docstring.
SEARCHES = {
    "rate limit": "server/rates.py",
    "health check": "reconciler/steps/await_listening.py",
    "idle timeout": "idle/__init__.py",
    "rollback": "versions/__init__.py",
    "port allocation": "engine/oci/network/allocations.py",
    "secret encryption": "credentials/__init__.py",
    "disk quota": "engine/oci/storage/quotas.py",
    "certificate renewal": "domains/renewal.py",
    "webhook retry": "webhooks/__init__.py",
    "log rotation": "engine/oci/runtime/creation.py",
    "build cache": "dependencies/__init__.py",
    "placement": "engine/incus/cluster.py",
}


@pytest.mark.parametrize("word", SEARCHES)
def test_search_for_a_word_of_the_field_finds_its_file_first(word: str) -> None:
    listed = subprocess.run(
        ["git", "grep", "-il", word, "--", "*.py"],
        cwd=ROOT / "src/builderd",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()

    assert next(name for name in listed if word in _docstrings(ROOT / "src/builderd" / name)) == SEARCHES[word]


def _docstrings(file: Path) -> str:
    nodes = ast.walk(ast.parse(file.read_text()))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return "\n".join(ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)).lower()
