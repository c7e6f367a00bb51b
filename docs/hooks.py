"""What MkDocs is told of the repository: what pages link to, and pages that are not there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Leave out of the navigation what does not exist."""
    config.nav = _existing(config.nav)
    return config


def _existing(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = []
    for entry in entries:
        ((title, place),) = entry.items()
        if isinstance(place, list):
            kept.append({title: _existing(place)})
        elif _source(place).exists():
            kept.append(entry)
    return kept


def _source(place: str) -> Path:
    """The file in the repository of a page of the site."""
    return ROOT / place if place in PAGES else DOCS / place


def on_files(files: Files, config: Any) -> Files:
    """Take in the pages at the root, and every file outside docs that a page links to."""
    found = {ROOT / name for name in PAGES}
    pages = [*found, *DOCS.glob("*.md")]
    for page in pages:
        for _, target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            file = Path(os.path.normpath(page.parent / target))
            if file.is_file() and DOCS not in file.parents:
                found.add(file)
    for file in sorted(found):
        files.append(File.generated(config, _address(file), abs_src_path=str(file)))
    return files


def _address(file: Path) -> str:
    """Where a file of the repository is in the site."""
    for folder in (DOCS, *((ROOT,) if file.name in PAGES and file.parent == ROOT else ())):
        if folder in file.parents:
            return file.relative_to(folder).as_posix()
    name = f"repository/{file.relative_to(ROOT).as_posix()}"
    return f"{name}.txt" if file.suffix in {".md", ".yaml", ".py", ""} else name


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Point links to where the site has their files; folders and what is not there are words."""
    source = _source(page.file.src_uri)
    here = Path(page.file.src_uri).parent

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match.groups()
        file = Path(os.path.normpath(source.parent / target))
        if not file.is_file():
            return words
        return f"[{words}]({os.path.relpath(_address(file), here)}{anchor or ''})"

    return LINK.sub(link, markdown)
