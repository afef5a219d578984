"""Numbers in words, rows of figures, and what they are: phones, cards, accounts, documents, or none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core import digits, number_words
from walled.core.normalise import folded, views


@pytest.mark.parametrize(
    ("words", "figures"),
    [
        ("seis cero cero", "600"), ("treinta y cuatro", "34"), ("treinta cuatro", "304"),
        ("seiscientos doce", "612"), ("trescientos cuarenta y cinco", "345"), ("cien", "100"),
        ("ciento veinte", "120"), ("veintidos", "22"), ("dos mil", "2000"), ("seis doce", "612"),
        ("double five", "55"), ("triple six", "666"), ("oh seven seven hundred", "07700"),
        ("nine hundred four five six", "900456"), ("thirty four", "34"), ("six hundred and twelve", "612"),
        ("doble cero", "00"), ("nineteen eighty four", "1984"),
    ],
)  # fmt: skip
def test_numbers_in_words(words: str, figures: str) -> None:
    parts = words.split()
    found, at = "", 0
    while at < len(parts):
        piece, after = number_words.take(parts, at)
        assert after > at, parts[at]
        found, at = found + piece, after
    assert found == figures


def phones(text: str) -> bool:
    return any(digits.phone(row) for row in digits.rows(views(text).numbers))


UNITS_ES = "cero uno dos tres cuatro cinco seis siete ocho nueve".split()  # noqa: SIM905
UNITS_EN = "zero one two three four five six seven eight nine".split()  # noqa: SIM905
MOBILES = st.from_regex(r"[67][0-9]{8}", fullmatch=True)


def _spelled(number: str, words: list[str], sep: str) -> str:
    return sep.join(words[int(figure)] for figure in number)


@given(MOBILES, st.sampled_from(["", " ", ".", "-", " - ", "/", "_", "~", " . ", ") ("]), st.integers(0, 5))
def test_a_mobile_is_seen_however_it_is_cut(number: str, sep: str, start: int) -> None:
    texts = ("llama al {}", "my cell is {}", "{} es el mío", "apunta: {}.", "{}", "y si no, {} gracias")
    assert phones(texts[start].format(sep.join(number)))


@given(MOBILES, st.sampled_from([UNITS_ES, UNITS_EN]), st.sampled_from([" ", "-", ", ", ". ", " / "]))
def test_a_mobile_in_words_is_seen(number: str, words: list[str], sep: str) -> None:
    steps = {int(b) - int(a) for a, b in itertools.pairwise(number)}
    if len(steps) > 1:  # six, seven, eight ... is counting
        assert phones(_spelled(number, words, sep))


@given(MOBILES, st.data())
def test_a_mobile_in_figures_and_words_mixed_is_seen(number: str, data: st.DataObject) -> None:
    pieces = [data.draw(st.sampled_from([figure, UNITS_ES[int(figure)]])) for figure in number]
    steps = {int(b) - int(a) for a, b in itertools.pairwise(number)}
    if len(steps) > 1:
        assert phones("mi móvil: " + " ".join(pieces))


@pytest.mark.parametrize(
    "text",
    [
        "6OO I23 4S6", "6a5b4c3d2e1f0g9h8i", "seisunodostrescuatro cinco seis siete ocho",
        "s3is c3ro c3ro d0ce tr3inta cincu3nta",
        "+34 600 11 22 33", "0034600112233", "07700 900123", "(555) 014-2277 text me", "+1 212 555 0198",
        "area code 415, then five five five, then 0172", "６１２３４５６７８", "6②③④⑤⑥⑦⑧⑨",
    ],
)  # fmt: skip
def test_disguises_of_a_number(text: str) -> None:
    assert phones(text)


@pytest.mark.parametrize(
    "text",
    [
        "1, 2, 3, 4, 5, 6, 7, 8 y 9", "36, 37, 38, 39, 40 y 41", "El código de barras es 8412345678905",
        "ISBN 9788437604947", "120 x 60 x 75 cm", "3840 x 2160, 120 Hz", "1.000.000", "2.499,00 € y 3.100",
        "12/09/2026 a las 17:45", "de 9 a 14 y de 16 a 20", "15 + 20 + 25 = 60 euros", "pedido 4459012",
        "Número de serie: 123456789", "Ref. 603.609.42", "123.456 km", "uno, dos, tres, probando",
        "set 75192 de 7541 piezas",
        "dos, dos y un banco de tres", "Motor 1.9 TDI 105 cv, 2008, 210.000 km", "205/55 R16 91V",
        "i7-12700H, 12/20",
    ],
)  # fmt: skip
def test_numbers_that_are_no_phone(text: str) -> None:
    assert not phones(text)


def rows(text: str) -> list[digits.Row]:
    return digits.rows(folded(text))


def test_cards_by_their_check_digit() -> None:
    assert any(digits.card(row) for row in rows("4111 1111 1111 1111"))
    assert any(digits.card(row) for row in rows("5500-0000-0000-0004"))
    assert not any(digits.card(row) for row in rows("4111 1111 1111 1112"))
    assert not any(digits.card(row) for row in rows("IMEI 356938035643809"))


def test_accounts_and_documents_by_theirs() -> None:
    assert digits.iban(folded("ES91 2100 0418 4502 0005 1332"))
    assert digits.iban(folded("G B 2 9 N W B K 6 0 1 6 1 3 3 1 9 2 6 8 1 9"))
    assert not digits.iban(folded("GB30 NWBK 6016 1331 9268 19"))
    assert digits.national_id(folded("12345678Z"))
    assert digits.national_id(folded("X-1234567-L"))
    assert not digits.national_id(folded("12345678A"))
    assert any(digits.account(row) for row in rows("2100 0418 45 0200051332"))


@given(st.text(alphabet="0123456789 .,-abcseis", max_size=200))
def test_no_text_breaks_the_rows(text: str) -> None:
    for row in digits.rows(text):
        assert len(row.figures) >= 5
        for judge in (digits.phone, digits.card, digits.account, digits.long_row):
            assert judge(row) in (True, False)
