"""What a worker does with rules: which requests they are for, prompts refused, answers judged, another try.

May live here: decisions over a request, its answer and the configuration; `now` is an argument. May not: the
rules themselves (assess.py), sockets, backends, libraries (they are handed in).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from walled.config import ModelConfig, ValidationConfig
from walled.core.assess import TOO_LONG, Facts, assess, findings, inbound, judged_as
from walled.core.holdback import Holdback
from walled.core.rules import RuleSet
from walled.errors import Blocked, PromptBlocked, TooLarge
from walled.payload import Answer, Message, Request, Validation

SWITCH: Final = "validation"
"""Name in a request's context; "off" asks for an answer that is not judged."""
JSON: Final = "json_schema"
"""Reason: the answer is not what the request's `format` asks for."""
RESERVE_S: Final = 0.25
"""Another try must be expected to end so long before the deadline."""
START_TOKENS: Final = 3.0
MAX_TOKENS: Final = 20.0
TEMPERATURE: Final = 0.3
"""At least, for another try: a deterministic model would say the same again."""


class Shape(Protocol):
    """What a `format` asks for."""

    def problem(self, text: str) -> str:
        """Where a text is not of the shape, without quoting it; "" when it is."""


class Shapes(Protocol):
    """Makes shapes."""

    def shape(self, format: str) -> Shape:
        """Of a request's `format`. Raises BadRequest when it cannot be checked."""


class Check:
    """The judgement of one job."""

    __slots__ = ("began_s", "facts", "found", "guard", "known", "regenerated", "request", "shape")

    def __init__(
        self, request: Request, facts: Facts, shape: Shape | None, guard: Holdback, now: float
    ) -> None:
        self.request = request
        self.facts = facts
        self.shape = shape
        self.guard = guard
        self.began_s = now
        self.regenerated = 0
        self.found = Validation()
        """What blocks it."""
        self.known: dict[str, None] = {}
        """Rules that have found something in what has been streamed."""

    def refusal(self) -> Blocked:
        """The error for an answer that is withheld."""
        return Blocked(f"the model's answer was withheld; rules: {', '.join(self.found.reasons)}")


class Validator:
    """The rules of one worker, with its budget of further tries."""

    def __init__(
        self,
        config: ValidationConfig,
        models: Mapping[str, ModelConfig],
        rules: RuleSet,
        shapes: Shapes | None,
    ) -> None:
        self.config = config
        self._models = models
        self._rules = rules
        self._shapes = shapes
        self._tokens = START_TOKENS

    @property
    def mark(self) -> tuple[str, ...]:
        """Two validators of the same mark judge alike."""
        unjudged = sorted(name for name, model in self._models.items() if model.validation == "off")
        return (self._rules.digest, str(self.config.block_at), *unjudged)

    def version(self, model: str) -> str:
        """What changes when the answers of a model may be judged otherwise; "" when they are not judged. Part
        of its cache key: an answer that was stored under other rules is not found any more."""
        if not self._judged(model):
            return ""
        return f"{self._rules.digest}.{self.config.block_at}"

    def _judged(self, model: str) -> bool:
        return self._models.get(model, _DEFAULT).validation != "off"

    # --- before -----------------------------------------------------------------------------------

    def begin(self, request: Request, model: str, context: Mapping[str, str], now: float) -> Check | None:
        """The check of a job; None when its answer is not judged.

        Raises PromptBlocked, TooLarge for a prompt that is not taken, BadRequest for a `format` that cannot
        be checked.
        """
        if request.kind == "embed" or not self._judged(model):
            return None
        facts = facts_of(request, context)
        self._prompt(request, facts)
        if self.config.may_skip and context.get(SWITCH) == "off":
            return None
        shape = None
        if request.format and self.config.json_schema and self._shapes is not None:
            shape = self._shapes.shape(request.format)
        check: Check | None = None

        def forbidden(text: str) -> bool:
            assert check is not None
            return self._forbidden(check, text)

        check = Check(request, facts, shape, Holdback(forbidden, self.config.holdback_chars), now)
        return check

    def _prompt(self, request: Request, facts: Facts) -> None:
        config = self.config
        if config.prompt_max_messages and len(request.messages) > config.prompt_max_messages:
            raise TooLarge(
                f"{len(request.messages)} messages; validation.prompt_max_messages is "
                f"{config.prompt_max_messages}"
            )
        if config.prompt_max_chars:
            count = len(request.prompt) + len(request.system)
            count += sum(len(message.content) for message in request.messages)
            if count > config.prompt_max_chars:
                raise TooLarge(
                    f"a prompt of {count} characters; validation.prompt_max_chars is "
                    f"{config.prompt_max_chars}"
                )
        if config.prompt_block_at and self._rules.inbound:
            found = inbound(self._rules, facts.prompt[: config.max_answer_chars], config.prompt_block_at)
            if found.verdict == "block":
                raise PromptBlocked(f"the prompt is not taken; rules: {', '.join(found.reasons)}")

    # --- while it streams -------------------------------------------------------------------------

    def _forbidden(self, check: Check, text: str) -> bool:
        found = findings(self._rules, text, check.facts)
        judged = judged_as(self._rules, [*check.known, *found], self.config.block_at)
        if judged.verdict == "block":
            check.found = judged
            return True
        check.known.update(dict.fromkeys(found))
        return False

    # --- after ------------------------------------------------------------------------------------

    def judge(self, check: Check, answer: Answer) -> Answer:
        """The answer as it may be given, `check.found` saying what was found; `block` forbids it."""
        config = self.config
        if len(answer.text) > config.max_answer_chars:
            check.found = _withheld(TOO_LONG)
        elif not answer.text and answer.tool_calls:
            check.found = Validation()
        elif check.shape is not None and check.shape.problem(answer.text):
            check.found = _withheld(JSON)
        else:
            judged = assess(self._rules, answer.text, check.facts, config.block_at)
            check.found = judged.validation
            if check.found.verdict == "repair":
                if check.guard.left or check.shape is not None:
                    # What has left has left, and JSON is not prose: it stays as it is.
                    check.found = msgspec.structs.replace(check.found, verdict="pass")
                else:
                    answer = msgspec.structs.replace(answer, text=judged.text)
        return msgspec.structs.replace(answer, validation=check.found)

    def passed(self) -> None:
        """A request has ended: it adds to the budget."""
        self._tokens = min(MAX_TOKENS, self._tokens + self.config.regenerate_budget)

    def may_regenerate(self, check: Check, sent: int, deadline_s: float, now: float) -> bool:
        """Whether a blocked answer may be tried again: nothing of it was shown, the request and the worker
        have tries left, and one is expected to end in time. Takes one from the budget when so."""
        if sent or check.regenerated >= self.config.regenerations or self._tokens < 1:
            return False
        took_s = (now - check.began_s) / (check.regenerated + 1)
        if now + took_s + RESERVE_S > deadline_s:
            return False
        self._tokens -= 1
        return True

    def again(self, check: Check) -> Request:
        """The request for another try: it says what was wrong, and leaves room to say it otherwise."""
        check.regenerated += 1
        check.known.clear()
        check.guard = Holdback(check.guard.forbidden, self.config.holdback_chars)
        request = check.request
        options = request.options
        seed = options.seed
        options = msgspec.structs.replace(
            options,
            temperature=None if options.temperature is None else max(options.temperature, TEMPERATURE),
            seed=None if seed is None else (seed + check.regenerated) % 2**32,
        )
        hint = self.config.regenerate_hint.replace("{rules}", ", ".join(check.found.reasons))
        if not hint:
            return msgspec.structs.replace(request, options=options)
        if request.kind == "generate":
            system = f"{request.system}\n{hint}" if request.system else hint
            return msgspec.structs.replace(request, options=options, system=system)
        return msgspec.structs.replace(request, options=options, messages=_with_hint(request.messages, hint))


_DEFAULT: Final = ModelConfig()


def _withheld(reason: str) -> Validation:
    return Validation(level="critical", reasons=(reason,), score=100, verdict="block")


def facts_of(request: Request, context: Mapping[str, str]) -> Facts:
    """What rules may know of a request."""
    if request.kind == "generate":
        return Facts(context, request.system, request.prompt)
    system = "\n".join(message.content for message in request.messages if message.role == "system")
    prompt = next((message.content for message in reversed(request.messages) if message.role == "user"), "")
    return Facts(context, system, prompt)


def _with_hint(messages: tuple[Message, ...], hint: str) -> tuple[Message, ...]:
    """Into the system message, because many chat templates take only one, and only as the first."""
    if messages and messages[0].role == "system":
        first = msgspec.structs.replace(messages[0], content=f"{messages[0].content}\n{hint}")
        return (first, *messages[1:])
    return (Message(role="system", content=hint), *messages)
