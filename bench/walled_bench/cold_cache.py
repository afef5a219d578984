"""How long a cache read takes when the kernel has to fetch its pages from the disk first.

May live here: this measurement. May not: starting the daemon.

A read of a mapped page that is not in memory stops the whole thread that makes it, with the GIL. Whether the
broker's loop may read inline depends on this figure. The kernel is asked to drop the file's pages
(posix_fadvise DONTNEED, while nobody has them mapped), and mincore proves that it did. In each round the
first `get` finds nothing in memory, not even the tree's root; the later ones find the upper tree and need
the record's own pages.

    PYTHONPATH=.:bench python -m walled_bench.cold_cache --directory DIR_ON_A_REAL_DISK
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import tempfile
import time
from pathlib import Path

import click

from walled.adapters.cache import CacheReader, CacheWriter
from walled.adapters.cache_env import DATA_FILE
from walled.core.record import Record
from walled_bench import machine
from walled_bench.figures import Figure, figure, save, show
from walled_bench.statistic import quantile

NOW_S = 1_000_000.0
VALUE_BYTES = 2048
DROPS = 50
"""The kernel does not drop pages it is still busy with; it is asked again, so many times."""
MAX_RESIDENT = 0.02
"""More of the file than this still in memory, and a round counts for nothing."""


def fill(directory: Path, entries: int) -> list[bytes]:
    """A cache of so many 2 KB answers; their keys."""
    writer = CacheWriter(directory, max_bytes=max(64 << 20, entries * 8192), max_entries=entries)
    draw = random.Random(1)
    keys = []
    for first in range(0, entries, 500):
        batch = [draw.randbytes(32) for _ in range(min(500, entries - first))]
        writer.put_many(
            [
                Record(
                    key, NOW_S, NOW_S + 1000, NOW_S + 2000, "default", "m", "b", draw.randbytes(VALUE_BYTES)
                )
                for key in batch
            ],
            NOW_S,
        )
        keys += batch
    stored = writer.stats().entries
    writer.close()
    if stored != entries:
        raise click.ClickException(f"{directory}: only {stored} of {entries} records could be stored")
    return keys


def drop_pages(path: Path) -> float:
    """Have the kernel forget the file's pages; the share it still holds. Nobody may have the file mapped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        for _ in range(DROPS):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            held = resident(file.fileno())
            if held <= MAX_RESIDENT:
                break
    return held


def resident(descriptor: int) -> float:
    """The share of a file's pages that is in memory, as mincore sees it; reads none of them."""
    size_bytes = os.fstat(descriptor).st_size
    with mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-size_bytes // mmap.PAGESIZE))()
        failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(size_bytes), pages)
        del start  # or the map could not be closed
    if failed:
        raise click.ClickException("mincore failed: residency cannot be proved on this system")
    return sum(page & 1 for page in pages) / len(pages)


def timed_us(reader: CacheReader, key: bytes) -> float:
    start_ns = time.perf_counter_ns()
    found = reader.get(key, NOW_S)
    took_ns = time.perf_counter_ns() - start_ns
    if found is None:
        raise click.ClickException(
            f"a record is missing; the cache says: {reader.stats().problem or 'nothing'}"
        )
    return took_ns / 1000


def measure(directory: Path, entries: int, rounds: int, reads: int) -> list[Figure]:
    """Warm and cold reads of a cache of `entries` answers."""
    keys = fill(directory, entries)
    draw = random.Random(2)
    reader = CacheReader(directory)
    for key in keys:
        reader.get(key, NOW_S)
    warm = [timed_us(reader, key) for key in draw.choices(keys, k=rounds * reads)]
    reader.close()
    first: list[float] = []
    later: list[float] = []
    for _ in range(rounds):
        held = drop_pages(directory / DATA_FILE)
        if held > MAX_RESIDENT:
            raise click.ClickException(
                f"{directory}: the kernel keeps {held:.0%} of the file in memory (tmpfs, or somebody has it "
                "mapped); choose a directory on a disk"
            )
        reader = CacheReader(directory)
        reader.meta("")  # opens the file, which reads its first two pages
        took = [timed_us(reader, key) for key in draw.sample(keys, min(reads, len(keys)))]
        first += took[:1]
        later += took[1:]
        reader.close()
    label = f"{entries} answers, "
    return [
        figure(f"{label}{kind} get, {name}", quantile(samples, share), "us", n=len(samples))
        for kind, samples in (("warm", warm), ("cold", later), ("first cold", first))
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    ]


@click.command()
@click.option("--directory", type=click.Path(path_type=Path, file_okay=False), default=Path("build"),
              show_default=True, help="Where the scratch cache goes; it must be on a disk.")  # fmt: skip
@click.option("--entries", type=int, multiple=True, default=(1000, 50_000), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Times all is dropped.")
@click.option(
    "--reads", type=click.IntRange(2), default=200, show_default=True, help="Reads after each drop."
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/figures/cold_cache.json"),
              show_default=True)  # fmt: skip
def main(directory: Path, entries: tuple[int, ...], rounds: int, reads: int, output: Path) -> None:
    """Measure cache reads with the file's pages in memory and dropped from it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in [*machine.facts(), ("load", machine.load())]:
        click.echo(f"{name}: {value}", err=True)
    found: list[Figure] = []
    for count in entries:
        with tempfile.TemporaryDirectory(dir=directory, prefix="cold-cache-") as scratch:
            found += measure(Path(scratch), count, rounds, reads)
    show(found, click.echo)
    save(found, output)


if __name__ == "__main__":
    main()
