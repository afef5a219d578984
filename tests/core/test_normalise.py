"""What a text says with its disguise taken off: letters, spacing, leetspeak, addresses; and the time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core.normalise import folded, views


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("WhatsApp", "whatsapp"),
        ("Wh\u0430ts\u0410pp", "whatsapp"),  # Cyrillic a
        ("\u0460hatsapp", "whatsapp"),
        ("ＷｈａｔｓＡｐｐ", "whatsapp"),
        ("𝐰𝐡𝐚𝐭𝐬𝐚𝐩𝐩", "whatsapp"),
        ("ⓦⓗⓐⓣⓢⓐⓟⓟ", "whatsapp"),
        ("🅆🄷🄰🅃🅂🄰🄿🄿", "whatsapp"),
        ("ᴡʜᴀᴛꜱᴀᴘᴘ", "whatsapp"),
        ("w\u200bh\u200ca\u2060t\ufeffs\u00adapp", "whatsapp"),
        ("ẅh̷a̶t̴s̵app", "whatsapp"),
        ("бизнес", "6u3hec"),  # nonsense of a language that is not meant is harmless
        ("Séis  CÉRO\tñandú", "seis cero nandu"),
        ("6️⃣1️⃣2️⃣", "612"),
        ("６１２ ٣٤٥ ६७८", "612 345 678"),
        ("¿Sí?", "si?"),
        ("a\r\n\n  b", "a\nb"),
    ],
)
def test_letters_are_what_they_look_like(written: str, read: str) -> None:
    assert folded(written) == read


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("al w h a t s a p p ya", "whatsapp"),
        ("W.h.a.t.s.A.p.p", "whatsapp"),
        ("w-h_a*t/s|a-p.p", "whatsapp"),
        ("wh4ts4pp", "whatsapp"),
        ("t3l3gr4m", "telegram"),
        ("B1zum", "bizum"),
        ("wh@ts@pp", "whatsapp"),
        ("G!ft c4rd$", "gift cards"),
        ("whaaaatsapp", "whatsapp"),
        ("t e l e g r a m: joe", "telegram"),
    ],
)
def test_words_are_put_together_again(written: str, word: str) -> None:
    assert word in views(written).plain


def test_a_one_may_be_an_l() -> None:
    assert "telegram" in views("te1egram").other


def test_what_is_cut_in_pieces_is_whole_without_blanks() -> None:
    assert "whatsapp" in views("whatsa pp, por favor").compact


@pytest.mark.parametrize(
    "written",
    [
        "ab.cd@ef.com", "ab.cd (at) ef (dot) com", "ab.cd [arroba] ef [punto] com",
        "ab punto cd arroba ef punto com", "ab dot cd at ef dot com", "ab.cd＠ef．com", "ab.cd-at-ef-dot-com",
        "AB.CD @ EF . COM", "ab.cd(a)ef.com", "a b . c d @ e f . c o m",
    ],
)  # fmt: skip
def test_addresses_are_written_out(written: str) -> None:
    assert views(written).address.replace(" ", "") == "ab.cd@ef.com"


@pytest.mark.parametrize("prose", ["el punto es que no", "el punto de recogida", "a dot of paint", "at noon"])
def test_prose_is_no_address(prose: str) -> None:
    assert "." not in views(prose).address
    assert "@" not in views(prose).address


def test_numbers_stay_numbers() -> None:
    seen = views("Mide 120 x 60 cm y cuesta 1.250 €")
    assert "120 x 60" in seen.text
    assert seen.numbers == seen.text


@given(st.text(max_size=300))
def test_every_text_has_its_forms(text: str) -> None:
    seen = views(text)
    assert seen.text == folded(seen.text) or not seen.text.isascii()
    assert all(view for view in seen.texts()) or not seen.text


@pytest.mark.parametrize(
    "piece",
    ["a", "a ", "a.", "@", "(at", " ", "a-", "\n \n", "1", " at aa", "a1", "!", "[.", "dot ", "é", "а"],
)
def test_time_is_linear_in_the_text(piece: str) -> None:
    def took_s(count: int) -> float:
        text = piece * (count // len(piece))
        began = time.thread_time()
        views(text)
        return time.thread_time() - began

    views(piece)
    small = min(took_s(20_000) for _ in range(3))
    assert took_s(160_000) < 40 * small + 0.05, "eight times the text"
