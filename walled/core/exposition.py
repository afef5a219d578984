"""The registry as Prometheus text, format 0.0.4.

May live here: the text. May not: serving it (adapters/scrape.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from walled.core.catalogue import BUCKETS_S
from walled.core.registry import Registry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def text(registry: Registry) -> str:
    lines: list[str] = []
    for family in sorted(registry.families()):
        rows = registry.rows(family.name)
        if not rows:
            continue
        lines += [f"# HELP {family.name} {_escaped(family.help)}", f"# TYPE {family.name} {family.kind}"]
        for row in sorted(rows, key=lambda row: sorted(row.labels.items())):
            if family.kind != "histogram":
                lines.append(f"{family.name}{_labels(row.labels)} {row.value!r}")
                continue
            bounds = [*(repr(float(bound)) for bound in BUCKETS_S), "+Inf"]
            for bound, count in zip(bounds, row.buckets, strict=True):
                lines.append(f"{family.name}_bucket{_labels({**row.labels, 'le': bound})} {count}")
            lines.append(f"{family.name}_sum{_labels(row.labels)} {row.sum!r}")
            lines.append(f"{family.name}_count{_labels(row.labels)} {int(row.value)}")
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{name}="{_escaped(value, quote=True)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""


def _escaped(value: str, *, quote: bool = False) -> str:
    value = value.replace("\\", "\\\\").replace("\n", "\\n")
    return value.replace('"', '\\"') if quote else value
