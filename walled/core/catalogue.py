"""Every metric of walled, in one table; docs/metrics.md shows it to people and a test compares the two.

May live here: names, kinds, help, label names and their bounds. May not: values.

A label has few values, known before: a worker is its slot, never its pid. What comes past a family's
`max_series` is counted in walled_metrics_overflow_total and dropped.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]

BUCKETS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2,
    3,
    5,
    10,
    20,
    40,
    80,
    160,
    320,
    640,
)
"""Upper bounds in seconds. 3 and 5 s are promises of walled, 640 s is beyond its longest deadline."""

APP_PREFIX = "walled_app_"


class Family(NamedTuple):
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    max_series: int = 64


_C: Kind = "counter"
_G: Kind = "gauge"
_H: Kind = "histogram"
_PROCESS = ("role", "worker")

FAMILIES: tuple[Family, ...] = (
    # Requests
    Family("walled_requests_total", _C, "Requests ended, by how.", ("model", "outcome", "source"), 512),
    Family("walled_requests_degraded_total", _C, "Requests that got a lesser answer.", ("model",)),
    Family("walled_request_duration_seconds", _H, "From arrival to the end.", ("model", "source"), 256),
    Family("walled_request_queue_seconds", _H, "Wait for a worker.", ("model",)),
    Family("walled_request_first_token_seconds", _H, "From arrival to the first token.", ("model",)),
    Family("walled_request_per_output_token_seconds", _H, "Decode time per token.", ("model",)),
    Family("walled_backend_phase_seconds", _H, "Phases of a backend.", ("model", "phase"), 192),
    Family("walled_tokens_total", _C, "Tokens, by type: prompt, output.", ("model", "type"), 128),
    Family("walled_requests_in_flight", _G, "Requests at workers."),
    Family("walled_queue_depth", _G, "Requests waiting.", ("class",), 8),
    Family("walled_queue_bytes", _G, "Payloads waiting."),
    Family("walled_queue_standing", _G, "1 while the queue of a class does not shorten.", ("class",), 8),
    Family("walled_queue_oldest_age_seconds", _G, "Age of the oldest waiting request.", ("class",), 8),
    # Workers
    Family("walled_worker_state", _G, "1 for the state the worker is in.", ("worker", "state"), 512),
    Family("walled_workers_live", _G, "Workers that can be given requests.", ("backend",)),
    Family("walled_backend_limit", _G, "Requests handed to a backend at once, as learned.", ("backend",)),
    Family("walled_worker_heartbeat_age_seconds", _G, "Since the worker was heard.", ("worker",), 128),
    Family("walled_worker_restarts_total", _C, "Restarts of children, by reason.", ("role", "reason")),
    # Cache
    Family("walled_cache_lookups_total", _C, "Lookups, by place and result.", ("place", "result"), 16),
    Family("walled_cache_entries", _G, "Answers in the cache."),
    Family("walled_cache_used_bytes", _G, "Bytes in use in the cache file."),
    Family("walled_cache_file_bytes", _G, "Size of the cache file."),
    Family("walled_cache_map_bytes", _G, "Size the cache file may reach."),
    Family("walled_cache_evictions_total", _C, "Records removed: for room, expired.", ("reason",), 8),
    Family("walled_cache_readers", _G, "Reader slots of the cache in use."),
    # Ladder
    Family("walled_breaker_state", _G, "0 closed, 1 half open, 2 open.", ("backend",)),
    Family("walled_retries_total", _C, "Second attempts.", ("backend",)),
    Family("walled_ladder_steps_total", _C, "Steps down the ladder.", ("step",), 16),
    Family("walled_validation_verdicts_total", _C, "Verdicts on answers.", ("verdict",), 16),
    # Judgement
    Family("walled_alerts", _G, "1 for the state a rule is in.", ("rule", "state"), 512),
    Family("walled_health_score", _G, "0 to 100."),
    Family("walled_health_deduction", _G, "Points taken off the health score.", ("indicator",)),
    Family("walled_leak_verdict", _G, "0 clean, 1 inconclusive, 2 leak.", ("role", "worker"), 160),
    Family("walled_alert_actions_total", _C, "Actions of alerts, by result.", ("result",), 16),
    # Processes and system
    Family("walled_process_uss_bytes", _G, "Memory of this process alone.", _PROCESS, 160),
    Family("walled_process_rss_bytes", _G, "Resident memory.", _PROCESS, 160),
    Family("walled_process_cpu_seconds_total", _C, "Processor time.", _PROCESS, 160),
    Family("walled_process_cpu_ratio", _G, "Share of one processor.", _PROCESS, 160),
    Family("walled_process_threads", _G, "Threads.", _PROCESS, 160),
    Family("walled_process_open_fds", _G, "Open file descriptors.", _PROCESS, 160),
    Family("walled_process_max_fds", _G, "Limit of file descriptors.", _PROCESS, 160),
    Family("walled_system_memory_used_ratio", _G, "Memory in use of the machine."),
    Family("walled_system_memory_total_bytes", _G, "Memory of the machine."),
    Family("walled_system_cpu_ratio", _G, "Processors in use, 0 to 1."),
    Family("walled_system_pressure_ratio", _G, "Share of 10 s that somebody stalled (PSI).", ("resource",)),
    Family("walled_gpu_memory_used_bytes", _G, "Memory in use of a GPU.", ("gpu",)),
    Family("walled_gpu_memory_total_bytes", _G, "Memory of a GPU.", ("gpu",)),
    Family("walled_gpu_utilization_ratio", _G, "GPU in use, 0 to 1.", ("gpu",)),
    # The monitor itself
    Family("walled_pub_drops_total", _C, "Publications that subscribers lost."),
    Family("walled_subscriptions_merged_total", _C, "Subscriptions that came too soon after others."),
    Family("walled_delta_drops_total", _C, "Deltas the senders could not send.", ("source",), 160),
    Family("walled_measurements_dropped_total", _C, "Measurements past a bound.", ("source",), 160),
    Family("walled_metrics_overflow_total", _C, "Series past a family's cap.", ("family",), 128),
    Family("walled_metrics_refused_total", _C, "Malformed deltas or entries."),
    Family("walled_sample_lag_seconds", _G, "How late the last sample was."),
    Family("walled_sample_duration_seconds", _G, "What the last sample took."),
    Family("walled_build_info", _G, "1; its labels say what runs.", ("version",), 2),
    Family(
        "walled_events_total", _C, "What broker and workers count under names of their own.", ("event",), 512
    ),
)

BY_NAME = {family.name: family for family in FAMILIES}
