"""The training loop: optimizer, schedule, phases and the loss curve. Nothing about files, wording or GGUF."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import optax

from .batches import batches
from .model import Params, Shape, initial, loss
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Phase:
    """A stretch of steps on rows of one length, with an optimizer of its own.

    `turns` bounds the questions of a dialogue, `drills` is the share of drills. The learning rate warms up,
    then goes down a cosine from `peak` to `peak * last`, laid out over `planned` steps. `embed` is the share
    of that rate for the embedding and the norms.
    """

    steps: int
    rows: int
    length: int
    turns: tuple[int, int]
    drills: float
    peak: float
    last: float
    planned: int
    embed: float


@dataclass
class Run:
    """What a training run leaves behind."""

    params: Params
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)


def _optimizer(phase: Phase, params: Params) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, Adam for the embedding and the norms."""
    total = phase.planned
    warm = min(150, total // 8)
    schedule = optax.warmup_cosine_decay_schedule(0.0, phase.peak, warm, total, phase.peak * phase.last)
    matrices = {
        name: optax.contrib.MuonDimensionNumbers() if name[0].isdigit() and "norm" not in name else None
        for name in params
    }
    muon = optax.contrib.muon(
        schedule,
        adam_learning_rate=lambda count: phase.embed * schedule(count),
        weight_decay=0.05,
        weight_decay_mask={name: "norm" not in name for name in params},
        adam_b2=0.98,
        adam_weight_decay=0.05,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def train(
    shape: Shape,
    tokenizer: Tokenizer,
    seed: int,
    phases: Sequence[Phase],
    *,
    log: Callable[[str], None],
    begun: Run | None = None,
    skip: int = 0,
    save: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train through the phases, from nothing or (`begun`) from what the first `skip` phases left.

    `save` is called every hundred steps and after each phase.
    """
    run = begun or Run(initial(shape, jax.random.PRNGKey(seed)))
    began = time.monotonic() - run.seconds
    for index, phase in enumerate(phases):
        if index < skip:
            continue
        chain = _optimizer(phase, run.params)
        state = chain.init(run.params)

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(
            params: Params,
            state: optax.OptState,
            rows: tuple[jax.Array, jax.Array, jax.Array],
            chain: optax.GradientTransformation = chain,
        ) -> tuple[Params, optax.OptState, jax.Array]:
            value, slope = jax.value_and_grad(loss)(params, shape, *rows)
            change, state = chain.update(slope, state, params)
            return optax.apply_updates(params, change), state, value

        drawn = random.Random(f"train {seed} {index}")
        source = batches(tokenizer, drawn, phase.rows, phase.length, phase.turns, drills=phase.drills)
        recent = 0.0
        for done in range(phase.steps):
            batch = next(source)
            run.params, state, value = step(run.params, state, (batch.ids, batch.segment, batch.weight))
            run.steps += 1
            run.tokens += int((batch.segment > 0).sum())
            recent = float(value) if done == 0 else 0.95 * recent + 0.05 * float(value)
            run.seconds = time.monotonic() - began
            if run.steps % 50 == 0 or run.steps == 1:
                run.curve.append((run.steps, round(recent, 4)))
                spent = f"{run.tokens} tokens {run.seconds:.0f} s"
                log(f"phase {index} step {run.steps} loss {recent:.4f} {spent}")
            if run.steps % 100 == 0:
                save(run)
        save(run)
    return run
