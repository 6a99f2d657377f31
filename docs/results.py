"""Write the tables of the pages in docs/ from the records in docs/results/, and nothing else.

    python docs/results.py [FOLDER]

FOLDER is docs/ by default. A page has a line `<!-- results/NAME.json -->` where the tables of that record belong, and a
line `<!-- end of results -->` below it; what stands between is replaced. `motionrnn ablate` and `compare` write the
records, with --json docs/results/NAME.json.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from motionrnn_ext.experiments.record import read_record, record_markdown

_BLOCK = re.compile(r"(<!-- (results/[\w.-]+\.json) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)


def page_with_tables(text: str, folder: Path) -> str:
    """Return the text of a page in `folder` with the tables of its records."""
    return _BLOCK.sub(
        lambda found: found[1] + record_markdown(read_record(folder / found[2])) + found[4], text
    )


def write_pages(folder: Path) -> list[Path]:
    """Write the tables of the pages in `folder`, and return the pages that have changed."""
    changed = []
    for page in sorted(folder.glob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = page_with_tables(before, folder)
        if after != before:
            page.write_text(after, encoding="utf-8")
            changed.append(page)
    return changed


if __name__ == "__main__":
    for page in write_pages(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent):
        print(f"written: {page}")
