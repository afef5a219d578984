"""A stream is held back by a window, so that what is forbidden never leaves in two halves.

May live here: what of a growing text may leave. May not: rules (the check is handed in), sockets, clocks.

The last `window_chars` characters of what has come stay here. Before anything leaves, the text is checked
from some sentences before what has not left yet up to its end: a phrase no longer than the window is whole
in it when its first character would leave. A find holds everything back; when it is still one after another
window of text has come (a denial may follow: "Bizum? No, ..."), the stream is blocked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

STEP_CHARS: Final = 24
"""The text is checked again after so many more characters."""
CONTEXT_CHARS: Final = 240
"""At least so much of what has left is looked at again, up to the sentence before."""
MAX_CONTEXT_CHARS: Final = 1200


class Holdback:
    """One stream on its way out."""

    __slots__ = ("_base", "_checked", "_since", "_text", "_window", "blocked", "forbidden", "left")

    def __init__(self, forbidden: Callable[[str], bool], window_chars: int) -> None:
        self.forbidden = forbidden
        self._window = window_chars
        self._text = ""
        """What has come, from `_base` on."""
        self._base = 0
        self._checked = 0
        self._since: int | None = None
        """How much had come when the find was first seen that holds the text back."""
        self.left = 0
        """Characters that have left."""
        self.blocked = False
        """Something forbidden is in it: it is to be stopped."""

    def feed(self, text: str) -> str:
        """Take more text; what may leave now."""
        self._text += text
        come = self._base + len(self._text)
        if self.blocked or come - max(self._checked, self.left + self._window) < STEP_CHARS:
            return ""
        self._checked = come
        if self.forbidden(self._looked_at()):
            if self._since is None:
                self._since = come
            self.blocked = come - self._since >= self._window
            return ""
        self._since = None
        return self._leave(come - self._window)

    def rest(self) -> str:
        """All that is still here: the whole text has passed."""
        return self._leave(self._base + len(self._text))

    def _leave(self, until: int) -> str:
        if until <= self.left:
            return ""
        text = self._text[self.left - self._base : until - self._base]
        self.left = until
        spare = self.left - self._base - MAX_CONTEXT_CHARS
        if spare > 0:
            self._text = self._text[spare:]
            self._base += spare
        return text

    def _looked_at(self) -> str:
        """From the beginning of a sentence, so that no denial is cut off from what it denies."""
        until = self.left - self._base - CONTEXT_CHARS
        if until <= 0:
            return self._text
        start = max(self._text.rfind(mark, 0, until) for mark in (". ", "\n", "? ", "! "))
        if start < 0:
            start = self._text.find(" ", until) if self._base else -1
        return self._text[start + 1 :]
