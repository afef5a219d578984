"""docs/metrics.md names every family as the catalogue has it, and no other."""

from __future__ import annotations

from pathlib import Path

from walled.core.catalogue import FAMILIES

DOCUMENT = Path(__file__).parents[2] / "docs/metrics.md"


def test_the_table_is_the_catalogue() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `walled_")]
    wanted = [f"| `{f.name}` | {f.kind} | {', '.join(f.labels) or '-'} | {f.help} |" for f in FAMILIES]
    assert rows == wanted
