"""Ten buyers who ask the built-in model: the conversations of figure 5, the same for daemon and bare engine.

May live here: what is asked. May not: sending it.
"""

from __future__ import annotations

ITEMS = (
    ("a wooden desk", "85 euros"), ("a mountain bike", "240 euros"), ("a coffee machine", "60 euros"),
    ("a leather jacket", "75 euros"), ("an electric guitar", "180 euros"), ("a garden table", "110 euros"),
    ("a baby stroller", "130 euros"), ("a film camera", "95 euros"), ("a bookshelf", "45 euros"),
    ("a pair of skis", "150 euros"),
)  # fmt: skip
TURNS = (
    "Hello, is it still available?",
    "What is the price?",
    "Could you tell me about its condition?",
    "When could I pick it up?",
)
MAX_TOKENS = 64


def system(conversation: int) -> str:
    item, price = ITEMS[conversation % len(ITEMS)]
    return f"You sell {item} for {price}. Condition: used, well kept. Pick-up only, any evening after six."
