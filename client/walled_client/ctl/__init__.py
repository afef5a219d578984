"""walled-ctl: the commands an operator types. This file: the program's entry, nothing else.

One module per family of verbs (asking, daemon, cache, config, demo); terminal.py holds what all share.
Other distributions add verbs through the entry point group `walled_ctl.commands` (name = verb, value = a
click command), so that this package never imports them.
"""

from __future__ import annotations

from walled_client.ctl.program import main

__all__ = ["main"]
