"""An application in a process of its own, for the chaos campaign: it reads the cache file itself.

May live here: its calls, and a line of JSON on standard output for each that ended. May not: judging them.
`python -m walled_bench.outsider RUN_DIR MODEL SEED`; it ends at the end of its standard input, after its
calls.

It shows what only such a client can: fresh, stale and template answers with the daemon dead, and that its
death, at any moment, costs the daemon nothing.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from typing import Any

from walled_client import Client

from walled import errors
from walled_bench import questions
from walled_bench.crowd import DEADLINES_S, PAUSE_S, STORED_QUESTIONS

THREADS = 2


def call(client: Client, number: int, deadline_s: float) -> dict[str, Any]:
    """One call, and how it ended."""
    began_s = time.monotonic()
    report: dict[str, Any] = {"number": number, "deadline_s": deadline_s}
    try:
        reply = client.chat(
            questions.chat(number), temperature=0, deadline_s=deadline_s, context={"number": str(number)}
        )
        report |= {"source": reply.source, "degraded": reply.degraded, "model": reply.model}
        report["text"] = reply.text
    except errors.WalledError as error:
        report["code"] = error.code
    except Exception as error:
        report["untyped"] = f"{type(error).__name__}: {error}"
    return report | {"took_s": time.monotonic() - began_s}


def main(run_dir: str, model: str, seed: int) -> None:
    stop, voice = threading.Event(), threading.Lock()

    def ask(dice: random.Random) -> None:
        while not stop.wait(dice.uniform(*PAUSE_S)):
            line = json.dumps(call(client, dice.randrange(STORED_QUESTIONS), dice.choice(DEADLINES_S)))
            with voice:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()

    with Client(run_dir, model=model) as client:
        threads = [threading.Thread(target=ask, args=(random.Random(seed + n),)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
