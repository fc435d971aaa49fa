"""READMEs and comments name files, commands and options that exist."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from img2prompt import presets

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "img2prompt"
FOLDERS = ("img2prompt", "jobs", "cluster", "tests")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
PAGES = [ROOT / "README.md", *(path for path in FILES if path.suffix == ".md")]
MANIFESTS = [path for path in FILES if path.suffix == ".yaml"]
SOURCES = [path for path in FILES if path.suffix in (".py", ".yaml") or path.name == "Dockerfile"]

LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDER_OR_FILE = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w")
FILE = re.compile(r"(?<![\w./>-])(?!/)[\w./-]+\.(?:py|yaml|md)\b")
QUOTED_FILE = re.compile(r"(?<=`)[\w./-]+\.(?:py|yaml|md)(?=`)")
OWN_FILE = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:py|yaml|md)\b")
COMMAND = re.compile(r"python (?:/app/)?jobs/(\w+)\.py([^\n`#|]*)")
SUBMITTED = re.compile(r"python cluster/submit\.py (?:--image )?(\w+)([^\n`#|]*)")
CODE = re.compile(r"`([^`\n]+)`")
OPTION = re.compile(r"(?<![\w-])--([a-z][\w.-]*)")

OTHER_PROJECTS = {"executor/base.py", "pipeline/filters/base_filter.py", "nodes.py"}
"""Files of datatrove and ComfyUI that comments name."""
PRESETS = {
    "average": presets.AVERAGE,
    "blend": presets.BLEND,
    "calibrate": presets.CALIBRATE,
    "demo": presets.CHAINS,
    "evaluate": presets.EVALUATE,
    "export": presets.EXPORT,
    "features": presets.FEATURES,
    "generate": presets.GENERATE,
    "plan": presets.PLANS,
    "predict": presets.PREDICT,
    "prepare": presets.PREPARE,
    "search": presets.SEARCH,
    "tower": {"tower": presets.tower_training},
    "train": presets.TRAIN,
}
EVERY_JOB = {"out", "config", "help", "resume-anyway"}


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def option_names(value: Any, above: str = "") -> Iterator[str]:
    """Yield the dotted command-line names of a config's fields."""
    items: Mapping[str, Any] = {}
    if isinstance(value, Mapping):
        items = value
    elif isinstance(value, list | tuple):
        items = {str(number): item for number, item in enumerate(value)}
    yield above.rstrip(".")
    for key, item in items.items():
        yield from option_names(item, f"{above}{key.replace('_', '-')}.")


def options_of(job: str) -> set[str]:
    configs = [make().to_dict() for make in PRESETS[job].values()]
    return {name for config in configs for name in option_names(config)} | EVERY_JOB


def heading_anchors(page: Path) -> set[str]:
    """Return GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), target
            assert not anchor or anchor in heading_anchors(path), target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_page_names_files_that_exist(page: Path) -> None:
    text = page.read_text()
    bases = (page.parent, PACKAGE, ROOT)
    named = {*FILE.findall(text), *FOLDER_OR_FILE.findall(text)}
    assert [name for name in named if not any((base / name).exists() for base in bases)] == []


def test_comments_and_docstrings_name_files_that_exist() -> None:
    known = [f"/{page_id(path)}" for path in (*FILES, ROOT / "README.md")]
    missing = {
        f"{page_id(source)}: {name}"
        for source in SOURCES
        for text in [source.read_text()]
        for name in {*QUOTED_FILE.findall(text), *OWN_FILE.findall(text)} - OTHER_PROJECTS
        if not any(path.endswith(f"/{name}") for path in known)
    }
    assert sorted(missing) == []


@pytest.mark.parametrize("page", [*PAGES, *MANIFESTS], ids=page_id)
def test_commands_name_presets_and_options_that_exist(page: Path) -> None:
    text = page.read_text()
    for job, rest in [*COMMAND.findall(text), *SUBMITTED.findall(text)]:
        words = rest.split()
        if words and re.match(r"[a-z]", words[0]):
            assert words[0] in PRESETS[job], f"{job} {rest}"
        assert set(OPTION.findall(rest)) <= options_of(job), f"{job} {rest}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent != ROOT / "cluster"], ids=page_id)
def test_options_in_text_are_those_of_a_job(page: Path) -> None:
    known = {name for job in PRESETS for name in options_of(job)}
    scripts = "\n".join(path.read_text() for path in (ROOT / "tests" / "benchmarks").glob("*.py"))
    for code in CODE.findall(page.read_text()):
        for name in OPTION.findall(code) if code.startswith("--") else ():
            in_script = f"{name.replace('-', '_')}:" in scripts
            assert name in known or in_script, f"`{code}`"


def test_the_readme_starts_with_the_blocks_that_ci_reads() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert blocks[0] == 'pip install -e ".[cpu]"\npython jobs/demo.py --out out/demo\n'
    assert blocks[1] == 'pip install -e ".[cpu,test]"\npython -m pytest\n'
