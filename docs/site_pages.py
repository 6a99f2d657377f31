"""Pages of the site whose text lies outside of docs/: the README, and the files of the repository that pages link to.

The README becomes the home page. Every other file that a link leads to becomes a page below `repository/`, source code
in a code block and a folder as the list of its files. The site is then complete by itself, and the same links work on
the web page of a repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
HOME = "README.md"
LANGUAGES = {".py": "python", ".cu": "cuda", ".cuh": "cuda", ".h": "cpp", ".cpp": "cpp", ".sh": "bash"}
LOADED = re.compile(
    r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>|url\([\"']?https?:[^)]*\)"
)
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the home page, and a page for each file outside of docs/ that a page links to."""
    pages = {
        file.src_uri: Path(file.abs_src_path).read_text() for file in files if file.is_documentation_page()
    }
    todo = [HOME, *(posixpath.normpath(f"docs/{uri}") for uri in pages)]
    seen = set(todo)
    while todo:
        path = todo.pop()
        if (ROOT / path).suffix == ".md":
            found = set(_linked(path, (ROOT / path).read_text())) - seen
            outside = {name for name in found if not name.startswith("docs/") and (ROOT / name).exists()}
            seen |= outside
            todo += sorted(outside)
    for path in sorted(seen):
        if not path.startswith("docs/"):
            files.append(File.generated(config, _uri(path), content=_text(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Lead every link to a page of the site, and take the tests' mark from blocks of code."""
    uri = page.file.src_uri
    outside = uri.startswith("repository/")
    path = HOME if uri == _uri(HOME) else uri.removeprefix("repository/") if outside else f"docs/{uri}"
    if not (ROOT / path).is_file():
        return markdown

    def lead(link: re.Match[str]) -> str:
        target = _resolved(path, link[2])
        if not (ROOT / target).exists():
            return link[0]  # code, or a mistake that the build reports
        place = posixpath.relpath(_uri(target), posixpath.dirname(uri) or ".")
        return link[1] + place + (link[3] or "") + link[4]

    parts = FENCE.split(re.sub(r"```python \w+\n", "```python\n", markdown))
    return "".join(part if part.startswith("```") else LINK.sub(lead, part) for part in parts)


def on_post_build(*, config: Any) -> None:
    """Refuse a site that loads a script, style, font or picture from elsewhere."""
    built = [path for kind in ("html", "css") for path in Path(config.site_dir).rglob(f"*.{kind}")]
    found = [(path.name, LOADED.findall(path.read_text())) for path in built]
    if loads := [f"{name}: {' '.join(parts)}" for name, parts in found if parts]:
        raise PluginError("the site should load nothing from elsewhere:\n" + "\n".join(loads))


def _resolved(path: str, target: str) -> str:
    """Return the path in the repository of what the page `path` links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def _linked(path: str, text: str) -> list[str]:
    prose = FENCE.sub("", text)
    return [_resolved(path, link[1]) for link in LINK.findall(prose)]


def _uri(path: str) -> str:
    """Return the place in the site of a file of the repository."""
    if path == HOME:
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def _text(path: str) -> str:
    source = ROOT / path
    if path.endswith(".md"):
        return source.read_text()
    if source.is_dir():
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in source.iterdir())
        content = "\n".join(name for name in names if not name.startswith(("__pycache__", ".")))
        return f"# {path}\n\n```\n{content}\n```\n"
    return f"# {path}\n\n````{LANGUAGES.get(source.suffix, '')}\n{source.read_text()}\n````\n"
