"""What a listing can say: the vocabulary of facts, how a listing is drawn, how it reads in each language.

No questions, no answers and no prompts live here (see phrases_en, phrases_es, grammar). Some values are
kept out of training ("held") so that evaluation can ask about facts the model has never seen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

Lang = str  # "en" or "es"

# English noun, Spanish noun, Spanish article
NOUNS: tuple[tuple[str, str, str], ...] = (
    ("bike", "bicicleta", "la"),
    ("mountain bike", "bicicleta de montaña", "la"),
    ("sofa", "sofá", "el"),
    ("armchair", "sillón", "el"),
    ("table", "mesa", "la"),
    ("desk", "escritorio", "el"),
    ("chair", "silla", "la"),
    ("lamp", "lámpara", "la"),
    ("bookcase", "estantería", "la"),
    ("wardrobe", "armario", "el"),
    ("washing machine", "lavadora", "la"),
    ("fridge", "nevera", "la"),
    ("oven", "horno", "el"),
    ("microwave", "microondas", "el"),
    ("coffee machine", "cafetera", "la"),
    ("toaster", "tostadora", "la"),
    ("phone", "móvil", "el"),
    ("laptop", "portátil", "el"),
    ("tablet", "tableta", "la"),
    ("monitor", "monitor", "el"),
    ("printer", "impresora", "la"),
    ("camera", "cámara", "la"),
    ("tripod", "trípode", "el"),
    ("guitar", "guitarra", "la"),
    ("piano", "piano", "el"),
    ("drum kit", "batería", "la"),
    ("console", "consola", "la"),
    ("board game", "juego de mesa", "el"),
    ("pram", "cochecito", "el"),
    ("cot", "cuna", "la"),
    ("car seat", "silla de coche", "la"),
    ("scooter", "patinete", "el"),
    ("helmet", "casco", "el"),
    ("tent", "tienda de campaña", "la"),
    ("rucksack", "mochila", "la"),
    ("suitcase", "maleta", "la"),
    ("jacket", "chaqueta", "la"),
    ("coat", "abrigo", "el"),
    ("dress", "vestido", "el"),
    ("watch", "reloj", "el"),
    ("mirror", "espejo", "el"),
    ("rug", "alfombra", "la"),
    ("mattress", "colchón", "el"),
    ("drill", "taladro", "el"),
    ("ladder", "escalera", "la"),
    ("lawn mower", "cortacésped", "el"),
    ("barbecue", "barbacoa", "la"),
    ("surfboard", "tabla de surf", "la"),
    ("skis", "esquís", "los"),
    ("headphones", "auriculares", "los"),
    ("speakers", "altavoces", "los"),
    ("boots", "botas", "las"),
)
NOUNS_HELD: tuple[tuple[str, str, str], ...] = (
    ("sewing machine", "máquina de coser", "la"),
    ("kayak", "kayak", "el"),
    ("violin", "violín", "el"),
    ("bench", "banco", "el"),
    ("projector", "proyector", "el"),
    ("skateboard", "monopatín", "el"),
)
COLOURS = (
    ("red", "rojo"),
    ("blue", "azul"),
    ("green", "verde"),
    ("black", "negro"),
    ("white", "blanco"),
    ("grey", "gris"),
    ("brown", "marrón"),
    ("yellow", "amarillo"),
    ("pink", "rosa"),
    ("orange", "naranja"),
    ("beige", "beige"),
    ("purple", "morado"),
)
CONDITIONS = (
    ("like new", "como nuevo"),
    ("in good condition", "en buen estado"),
    ("in very good condition", "en muy buen estado"),
    ("in fair condition", "en estado aceptable"),
    ("with light marks of use", "con leves marcas de uso"),
    ("with a small scratch", "con un pequeño arañazo"),
    ("never used", "sin usar"),
    ("fully working", "en pleno funcionamiento"),
    ("in need of a small repair", "con necesidad de una pequeña reparación"),
    ("newly cleaned", "recién limpiado"),
)
PLACES = (
    "Valencia",
    "Madrid",
    "Sevilla",
    "Bilbao",
    "Zaragoza",
    "Granada",
    "Toledo",
    "Oviedo",
    "Burgos",
    "Cádiz",
    "Gijón",
    "Alicante",
    "Murcia",
    "Girona",
    "Tarragona",
    "Salamanca",
    "Lugo",
    "Vigo",
    "Huelva",
    "Teruel",
    "London",
    "Leeds",
    "Bristol",
    "York",
    "Oxford",
    "Dublin",
    "Cork",
    "Glasgow",
    "Cardiff",
    "Bath",
    "Exeter",
    "Lyon",
    "Paris",
    "Lille",
    "Porto",
    "Lisbon",
    "Braga",
    "Rome",
    "Milan",
    "Turin",
    "Berlin",
    "Hamburg",
    "Vienna",
    "Graz",
    "Zurich",
    "Ghent",
    "Boston",
    "Denver",
    "Austin",
    "Portland",
    "Lima",
    "Quito",
    "Bogotá",
    "Rosario",
    "Mérida",
    "Puebla",
)
PLACES_HELD = ("Málaga", "Córdoba", "Barcelona", "Manchester", "Edinburgh", "Florence", "Chicago", "Medellín")
PAYMENTS = (
    ("cash", "efectivo"),
    ("bank transfer", "transferencia"),
    ("card", "tarjeta"),
    ("in-app payment", "pago en la aplicación"),
    ("Bizum", "Bizum"),
    ("PayPal", "PayPal"),
    ("cash or card", "efectivo o tarjeta"),
    ("cash or bank transfer", "efectivo o transferencia"),
    ("cash or Bizum", "efectivo o Bizum"),
)
REASONS = (
    ("a move to another city", "una mudanza a otra ciudad"),
    ("lack of space", "falta de espacio"),
    ("the purchase of a newer one", "la compra de otro más nuevo"),
    ("little use", "poco uso"),
    ("a gift that was not needed", "un regalo que no hacía falta"),
    ("a change of hobby", "un cambio de afición"),
    ("a house clearance", "el vaciado de una casa"),
)
EXTRAS = (
    ("the original box", "la caja original"),
    ("the charger", "el cargador"),
    ("the manual", "el manual"),
    ("a cover", "una funda"),
    ("two spare parts", "dos piezas de repuesto"),
    ("a carrying bag", "una bolsa de transporte"),
    ("the receipt", "el tique de compra"),
    ("a cable", "un cable"),
    ("a set of screws", "un juego de tornillos"),
)
STATUSES = (("available", "disponible"), ("reserved", "reservado"), ("sold", "vendido"))
CURRENCIES = (
    ("euros", "euros", "EUR", "€"),
    ("dollars", "dólares", "USD", "$"),
    ("pounds", "libras", "GBP", "£"),
)
NAMES = (
    "Marta",
    "Luis",
    "Ana",
    "Pablo",
    "Elena",
    "Jorge",
    "Sara",
    "Diego",
    "Laura",
    "Hugo",
    "Tom",
    "Emma",
    "Jack",
    "Lucy",
    "Oscar",
    "Nina",
    "Ruth",
    "Adam",
    "Clara",
    "Iván",
    "Paula",
    "Ben",
    "Alice",
    "Carmen",
    "Raúl",
    "Sofia",
)
NAMES_HELD = ("Beatriz", "Gonzalo", "Harriet", "Dylan")
_DAYS = (
    ("Monday", "lunes"),
    ("Tuesday", "martes"),
    ("Wednesday", "miércoles"),
    ("Thursday", "jueves"),
    ("Friday", "viernes"),
    ("Saturday", "sábado"),
    ("Sunday", "domingo"),
)
_HEADS = (
    "Vel",
    "Kor",
    "Tam",
    "Bri",
    "Zan",
    "Lum",
    "Fer",
    "Nor",
    "Pax",
    "Dor",
    "Mil",
    "Sol",
    "Gra",
    "Rin",
    "Hal",
    "Qua",
)
_TAILS = (
    "kor",
    "dex",
    "mar",
    "tia",
    "vio",
    "lan",
    "bex",
    "ris",
    "ton",
    "ja",
    "pel",
    "nix",
    "so",
    "dra",
    "mo",
    "wen",
)

SLOTS = (
    "condition",
    "place",
    "shipping",
    "status",
    "payment",
    "hours",
    "year",
    "size",
    "reason",
    "extras",
    "colour",
    "brand",
    "seller",
)


@dataclass(frozen=True)
class Listing:
    """One item for sale: what each language calls each fact. A slot that is absent is a fact nobody gave."""

    price: str
    lowest: str | None
    currency: int
    free_shipping: bool
    no_shipping: bool
    status: int
    said: dict[str, dict[Lang, str]]
    article_es: str

    def slots(self, lang: Lang) -> dict[str, str]:
        """Every value a template may name, in one language."""
        out = {key: value[lang] for key, value in self.said.items()}
        unit = CURRENCIES[self.currency][0 if lang == "en" else 1]
        out["price"] = f"{self.price} {unit}"
        out["unit"] = unit
        if "shipping" in out:
            out["shipping"] = f"{out['shipping']} {unit}"
        out["the_item"] = f"the {out['item']}" if lang == "en" else f"{self.article_es} {out['item']}"
        return out

    @property
    def plural(self) -> bool:
        """Whether the item takes a plural verb."""
        return self.article_es in ("los", "las")


def is_held_price(number: str) -> bool:
    """Whether a price belongs to the tenth that training never shows."""
    whole = int(number.partition(".")[0])
    return (whole * 7919 + 13) % 10 == 0


def draw_amount(rng: random.Random, held: bool, low: int = 3, high: int = 2999) -> str:
    """A price, spread over the number of digits; one in fourteen has cents."""
    while True:
        top = rng.choice([t for t in (9, 99, 99, 999, 999, 2999) if t <= high] or [high])
        floor = max(low, {9: 2, 99: 10, 999: 100, 2999: 1000}.get(top, low))
        whole = rng.randint(min(floor, top), top)
        if rng.random() < 0.3 and whole > 50:
            whole -= whole % 5
        number = str(whole)
        if is_held_price(number) == held:
            return number + (rng.choice((".50", ".90", ".95", ".99")) if rng.random() < 0.07 else "")


def _both(pair: tuple[str, str]) -> dict[Lang, str]:
    return {"en": pair[0], "es": pair[1]}


def _hours(rng: random.Random) -> dict[Lang, str]:
    kind = rng.randrange(4)
    first = rng.randint(8, 20)
    day = rng.choice(_DAYS)
    if kind == 0:
        return {"en": f"after {first}:00", "es": f"después de las {first}:00"}
    if kind == 1:
        last = first + rng.randint(1, 3)
        return {"en": f"on {day[0]} from {first} to {last}", "es": f"el {day[1]} de {first} a {last}"}
    if kind == 2:
        return {"en": f"on {day[0]} before {first}:30", "es": f"el {day[1]} antes de las {first}:30"}
    return _both(
        rng.choice(
            (
                ("at weekends", "los fines de semana"),
                ("in the mornings", "por las mañanas"),
                ("in the evenings", "por las tardes"),
                ("on any day", "cualquier día"),
            )
        )
    )


def made_up_name(rng: random.Random) -> str:
    """A brand that does not exist, so that it has to be copied and cannot be remembered."""
    name = rng.choice(_HEADS) + rng.choice(_TAILS)
    return name + (f" {rng.randint(2, 990)}" if rng.random() < 0.35 else "")


def draw_listing(rng: random.Random, held: bool = False, keep: float = 0.72, sure: float = 0.9) -> Listing:
    """One listing. `held` draws prices, places, names and half of the nouns from what training never sees."""
    noun = rng.choice(NOUNS_HELD if held and rng.random() < 0.5 else NOUNS)
    price = draw_amount(rng, held)
    lowest = None
    if rng.random() < 0.7:
        whole = int(price.partition(".")[0])
        lowest = str(max(1, int(whole * rng.uniform(0.6, 0.92))))
        if lowest == str(whole):
            lowest = str(whole - 1)
    free, none = rng.random() < 0.12, rng.random() < 0.2
    status = rng.choices((0, 1, 2), (6, 1, 1))[0]
    every: dict[str, dict[Lang, str]] = {
        "condition": _both(rng.choice(CONDITIONS)),
        "place": dict.fromkeys(("en", "es"), rng.choice(PLACES_HELD if held else PLACES)),
        "shipping": dict.fromkeys(("en", "es"), draw_amount(rng, held, 2, 99)),
        "status": _both(STATUSES[status]),
        "payment": _both(rng.choice(PAYMENTS)),
        "hours": _hours(rng),
        "year": dict.fromkeys(("en", "es"), str(rng.randint(2004, 2026))),
        "size": dict.fromkeys(
            ("en", "es"),
            f"{rng.randint(15, 240)} x {rng.randint(10, 120)} cm"
            if rng.random() < 0.6
            else f"{rng.randint(20, 260)} cm",
        ),
        "reason": _both(rng.choice(REASONS)),
        "extras": _both(rng.choice(EXTRAS)),
        "colour": _both(rng.choice(COLOURS)),
        "brand": dict.fromkeys(("en", "es"), made_up_name(rng)),
        "seller": dict.fromkeys(("en", "es"), rng.choice(NAMES_HELD if held else NAMES)),
    }
    usual = ("place", "shipping", "condition")
    said = {key: every[key] for key in SLOTS if rng.random() < (sure if key in usual else keep)}
    en, es = noun[0], noun[1]
    if "brand" in said and rng.random() < 0.5:
        en, es = f"{said['brand']['en']} {en}", f"{es} {said['brand']['es']}"
    if "colour" in said and rng.random() < 0.4:
        en, es = f"{said['colour']['en']} {en}", f"{es} de color {said['colour']['es']}"
    said["item"] = {"en": en, "es": es}
    if "status" not in said:
        status = 0
    return Listing(
        price, lowest, rng.choices((0, 1, 2), (8, 1, 1))[0], free, none and not free, status, said, noun[2]
    )
