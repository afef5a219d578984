"""walled/errors.py: codes, classes, and the way back from the wire.

May live here: properties every error must have. The table of codes is compared in tests/golden.
"""

from __future__ import annotations

import re

import pytest

from walled import errors
from walled.errors import BY_CODE, WalledError

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, WalledError)]


@pytest.mark.parametrize("cls", CLASSES, ids=[cls.__name__ for cls in CLASSES])
def test_every_class_survives_the_wire(cls: type[WalledError]) -> None:
    error = cls("what, where, what to do", retry_after_s=1.5)
    again = errors.from_wire(error.code, error.message, error.retry_after_s)
    assert type(again).code == cls.code
    assert again.retryable == cls.retryable
    assert (again.message, again.retry_after_s) == ("what, where, what to do", 1.5)
    assert isinstance(again, cls) or cls is WalledError


def test_codes_are_unique_but_for_the_base() -> None:
    codes = [cls.code for cls in CLASSES if cls is not WalledError]
    assert len(codes) == len(set(codes)) == len(BY_CODE)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_an_unknown_code_becomes_an_internal_error_naming_it() -> None:
    error = errors.from_wire("invented_later", "something", 2.0)
    assert type(error) is errors.InternalError
    assert error.message == "invented_later: something"
    assert error.retry_after_s == 2.0


@pytest.mark.parametrize("cls", CLASSES, ids=[cls.__name__ for cls in CLASSES])
def test_an_error_without_words_still_says_something(cls: type[WalledError]) -> None:
    assert cls().message == str(cls()) == cls.__name__
    assert cls().retry_after_s is None


@pytest.mark.parametrize("cls", CLASSES, ids=[cls.__name__ for cls in CLASSES])
def test_every_class_says_what_it_means(cls: type[WalledError]) -> None:
    assert cls.__doc__


def test_callers_can_catch_by_family() -> None:
    assert issubclass(errors.TooLarge, errors.BadRequest)
    assert issubclass(errors.DaemonUnavailable, errors.Unavailable)
    assert issubclass(errors.VersionMismatch, errors.ProtocolError)
    for cls in (errors.BackendUnavailable, errors.BackendTimeout, errors.BackendOverloaded, errors.Truncated):
        assert issubclass(cls, errors.BackendError)


def test_protocol_errors_carry_the_reason_they_are_counted_under() -> None:
    assert errors.ProtocolError("x").reason == "malformed"
    assert errors.ProtocolError("x", reason="magic").reason == "magic"
    assert errors.VersionMismatch("x").reason == "version"
