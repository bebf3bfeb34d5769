"""Sections of docs/RESULTS.md that commands write: each between its own two marks, the text around them a person's.

It knows Markdown and the terminal; it knows no benchmark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.console import Console

from benchmarks.trial import ROOT

PAGE = ROOT / "docs" / "RESULTS.md"


@dataclass(frozen=True)
class Table:
    """Heads and rows of text; the first column is left-aligned."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.heads, (":---", *["---:"] * (len(self.heads) - 1)), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def put(section: str, text: str, table: Table) -> None:
    """Print the text and the table, and replace the section that holds them. Raises RuntimeError if it has no marks."""
    body = f"{text}\n\n{table.markdown()}"
    Console(soft_wrap=True, highlight=False).print(f"{body}\n", markup=False)
    begin, end = f"<!-- {section}: written by the command -->", f"<!-- end of {section} -->"
    page = PAGE.read_text()
    found = re.search(rf"{re.escape(begin)}.*?{re.escape(end)}", page, re.DOTALL)
    if found is None:
        raise RuntimeError(f"{PAGE.name} lacks the lines '{begin}' and '{end}'")
    PAGE.write_text(page[: found.start()] + f"{begin}\n{body}\n{end}" + page[found.end() :])
