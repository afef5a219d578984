"""The door to RE2: regular expressions in time linear in the text, whatever the pattern.

May live here: compiling, matching, words for what is wrong with a pattern. May not: rules.

RE2 has no backtracking, so no pattern and no text can stall a worker. All patterns of a kind stand behind
one automaton of the words they need (FilteredRE2); only those whose words occur are run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from walled.errors import ConfigError

MAX_PATTERN_BYTES = 16 * 1024 * 1024
"""Bound on the automaton of one pattern; past it RE2 begins it anew or goes without, still in linear time."""

EXTRA = 'pip install "walled[validation]"'


def engine() -> Re2:
    """Raises ConfigError when the package is not installed."""
    try:
        import re2
    except ImportError:
        raise ConfigError(
            f"validation.enabled: needs the package google-re2, which is not installed; "
            f"install it with: {EXTRA}"
        ) from None
    return Re2(re2)


class Re2:
    """core.rules.Engine."""

    def __init__(self, library: Any) -> None:
        self._re2 = library

    def _options(self, max_bytes: int) -> Any:
        options = self._re2.Options()
        options.log_errors = False
        options.max_mem = max_bytes
        return options

    def problem(self, pattern: str) -> str:
        try:
            compiled = self._re2.compile(pattern, self._options(MAX_PATTERN_BYTES))
        except self._re2.error as exc:
            why = exc.args[0].decode("utf-8", "replace") if isinstance(exc.args[0], bytes) else str(exc)
            if any(sign in pattern for sign in ("(?=", "(?!", "(?<")):
                why += "; look-around is not taken, because it cannot be matched in linear time"
            return f"`{pattern}` is no regular expression of RE2: {why}"
        if compiled.search("") is not None:
            return f"`{pattern}` matches an empty text, and so every text"
        return ""

    def searcher(self, pattern: str) -> Callable[[str], bool]:
        """Whether a pattern of whatever origin occurs in a text. ValueError when RE2 does not take it."""
        try:
            compiled = self._re2.compile(pattern, self._options(MAX_PATTERN_BYTES))
        except self._re2.error:
            raise ValueError("not a regular expression of RE2") from None
        return lambda text: compiled.search(text) is not None

    def compile(self, patterns: Sequence[str]) -> Re2Matcher:
        options = self._options(MAX_PATTERN_BYTES)
        together = None
        if len(patterns) > 1:
            together = self._re2.Filter()
            for pattern in patterns:
                together.Add(pattern, options)
            together.Compile()
        single = self._options(MAX_PATTERN_BYTES)
        return Re2Matcher(together, [self._re2.compile(pattern, single) for pattern in patterns])


class Re2Matcher:
    """core.rules.Matcher."""

    def __init__(self, together: Any, each: Sequence[Any]) -> None:
        self._together = together
        self._each = each

    def which(self, text: str) -> Sequence[int]:
        if self._together is not None:
            return sorted(self._together.Match(text) or ())
        return [0] if self._each and self._each[0].search(text) is not None else []

    def spans(self, number: int, text: str) -> list[tuple[int, int]]:
        return [found.span() for found in self._each[number].finditer(text)]

    def replaced(self, number: int, text: str, by: str) -> str:
        changed: str = self._each[number].sub(lambda _: by, text)
        return changed
