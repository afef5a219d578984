"""The training loop: optimizer, schedule, phases and the loss curve. Nothing about files, wording or GGUF."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import optax

from .batches import batches
from .model import Params, Shape, initial, loss
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Phase:
    """A stretch of steps on rows of one length; `turns` bounds the questions of a dialogue."""

    steps: int
    rows: int
    length: int
    turns: tuple[int, int]


@dataclass
class Run:
    """What a training run leaves behind."""

    params: Params
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)


def train(
    shape: Shape,
    tokenizer: Tokenizer,
    seed: int,
    phases: tuple[Phase, ...],
    peak: float,
    *,
    log: Callable[[str], None],
    stop: int | None = None,
) -> Run:
    """Train from nothing through the phases: one warm-up, then a cosine down to a twentieth of the peak.

    `stop` leaves the plan after that many steps without changing the schedule.
    """
    total = sum(phase.steps for phase in phases)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, min(150, total // 8), total, peak / 20)
    start = initial(shape, jax.random.PRNGKey(seed))
    matrices = {
        name: optax.contrib.MuonDimensionNumbers() if name[0].isdigit() and "norm" not in name else None
        for name in start
    }
    decays = {name: "norm" not in name for name in start}
    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule,
            weight_decay=0.05,
            weight_decay_mask=decays,
            adam_b2=0.98,
            adam_weight_decay=0.05,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=matrices,
        ),
    )
    run = Run(start)
    state = chain.init(run.params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: Params, state: optax.OptState, ids: jax.Array, segment: jax.Array, weight: jax.Array
    ) -> tuple[Params, optax.OptState, jax.Array]:
        value, slope = jax.value_and_grad(loss)(params, shape, ids, segment, weight)
        change, state = chain.update(slope, state, params)
        return optax.apply_updates(params, change), state, value

    began, recent = time.monotonic(), 0.0
    for index, phase in enumerate(phases):
        drawn = random.Random(f"train {seed} {index}")
        source = batches(tokenizer, drawn, phase.rows, phase.length, phase.turns)
        for _ in range(phase.steps):
            if run.steps == stop:
                break
            batch = next(source)
            run.params, state, value = step(run.params, state, batch.ids, batch.segment, batch.weight)
            run.steps += 1
            run.tokens += int((batch.segment > 0).sum())
            recent = float(value) if run.steps == 1 else 0.95 * recent + 0.05 * float(value)
            if run.steps % 50 == 0 or run.steps == 1:
                run.curve.append((run.steps, round(recent, 4)))
                spent = time.monotonic() - began
                log(f"step {run.steps}/{total} loss {recent:.4f} tokens {run.tokens} {spent:.0f} s")
    run.seconds = time.monotonic() - began
    return run
