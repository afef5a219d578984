"""Samples of real processes: what is theirs alone, what is shared, what is only kept by the allocator."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from walled.adapters.probe import FamilyProbe, ProcessSample

MB = 1024 * 1024

HOLDER = """
import ctypes, sys
blocks = [bytes(2000) for _ in range(20_000)]
print("full", flush=True); sys.stdin.readline()
kept = blocks[::200]; del blocks
print("freed", flush=True); sys.stdin.readline()
ctypes.CDLL(None).malloc_trim(0)
print("trimmed", flush=True); sys.stdin.readline()
"""


@contextmanager
def a_child(program: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def of(pid: int, probe: FamilyProbe) -> ProcessSample:
    return next(sample for sample in probe.sample() if sample.pid == pid)


def test_trap_freed_memory_glibc_keeps() -> None:
    """Memory freed in the middle of the heap looks like a leak until malloc_trim gives it back.

    So a verdict on memory may only be made of USS after a trim.
    """
    probe = FamilyProbe(os.getpid())
    seen = {}
    with a_child(HOLDER) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for phase in ("full", "freed", "trimmed"):
            assert child.stdout.readline().strip() == phase
            seen[phase] = of(child.pid, probe).uss_bytes
            child.stdin.write("\n")
            child.stdin.flush()
    assert seen["freed"] > seen["full"] - 10 * MB, "freed, yet still counted as its own"
    assert seen["trimmed"] < seen["full"] - 25 * MB


def test_a_process_is_sampled_with_its_children_and_forgotten_with_them() -> None:
    probe = FamilyProbe(os.getpid())
    with a_child("import sys; print('up', flush=True); sys.stdin.readline()") as child:
        assert child.stdout is not None
        child.stdout.readline()
        sample = of(child.pid, probe)
        assert 0 < sample.uss_bytes < sample.rss_bytes, "shared pages are in RSS only"
        assert sample.threads == 1
        assert of(os.getpid(), probe).cpu_s > 0
    assert child.pid not in {sample.pid for sample in probe.sample()}


def test_a_process_that_is_gone_gives_no_samples() -> None:
    with a_child("") as child:
        child.wait(10)
    assert FamilyProbe(child.pid).sample() == []


def test_a_prober_without_descriptors_sees_nobody_and_lives() -> None:
    probe = FamilyProbe(os.getpid())
    assert probe.sample()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert probe.sample() == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert probe.sample()
