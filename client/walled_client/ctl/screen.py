"""The live screen of `walled-ctl top`: textual draws what panels.py says, once a second.

May live here: textual, keys, the tasks that feed the picture. May not: words and layout (panels.py),
arithmetic (picture.py). The only module that imports textual; top.py imports it when a terminal is there.

It must be cheap: one widget of plain lines, of which only those that changed are drawn, and no animation.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from walled.errors import WalledError
from walled_client.aio import AsyncClient
from walled_client.ctl import panels
from walled_client.ctl.panels import Line, View
from walled_client.picture import HISTORIES, POINTS, Picture
from walled_client.subscriber import AsyncSubscriber

SETTLE_S = 0.15
"""Publications of one second come in one burst, of which `health` is the first."""
STATUS_S = 2.0
"""The broker's view of workers and queue is not published: it is asked for so often."""
RETRY_S = 1.0
LOOK_S = 1.0
COLORS = {
    "": "", "dim": "dim", "bold": "bold", "good": "green", "warn": "yellow", "bad": "bold red", "head": "dim",
}  # fmt: skip
PLAIN = {
    "": "",
    "dim": "dim",
    "bold": "bold",
    "good": "",
    "warn": "bold",
    "bad": "bold reverse",
    "head": "dim",
}
KEYS = " q quit   e explain   p pause   arrows scroll"


class Board(ScrollView):
    """Lines of styled text; drawn anew only where they changed."""

    DEFAULT_CSS = """
    Board {
        overflow-x: hidden;
        scrollbar-gutter: stable;
        scrollbar-size-vertical: 1;
        scrollbar-color: ansi_bright_black;
        scrollbar-color-hover: ansi_bright_black;
        scrollbar-color-active: ansi_white;
        scrollbar-background: ansi_default;
        scrollbar-background-hover: ansi_default;
        scrollbar-background-active: ansi_default;
    }
    """

    def __init__(self, styles: dict[str, Style]) -> None:
        super().__init__()
        self.can_focus = True
        self._styles = styles
        self.lines: list[Line] = []

    def show(self, lines: list[Line]) -> None:
        before, self.lines = self.lines, lines
        width = self.scrollable_content_region.width
        if len(lines) != len(before):
            self.virtual_size = Size(width, len(lines))
            self.refresh()
            return
        top = round(self.scroll_y)
        changed = [y for y, line in enumerate(lines) if line != before[y]]
        self.refresh(*(Region(0, y - top, width, 1) for y in changed if 0 <= y - top < self.size.height))

    def render_line(self, y: int) -> Strip:
        place, width = y + round(self.scroll_y), self.scrollable_content_region.width
        if not 0 <= place < len(self.lines):
            return Strip.blank(width)
        segments = [Segment(text, self._styles[style]) for text, style in self.lines[place]]
        return Strip(segments).adjust_cell_length(width)


class Keys(ScrollView):
    """The last line: what keys there are."""

    DEFAULT_CSS = "Keys { dock: bottom; height: 1; overflow: hidden; }"

    def __init__(self, style: Style) -> None:
        super().__init__()
        self._style = style

    def render_line(self, y: int) -> Strip:
        return Strip([Segment(KEYS, self._style)]).adjust_cell_length(self.size.width)


class Top(App[None]):
    """The screen and what feeds it."""

    TITLE = "walled"
    CSS = "Screen { background: transparent; }"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q,ctrl+c", "quit", "quit"),
        ("e", "explain", "explain"),
        ("p", "pause", "pause"),
    ]

    def __init__(
        self, run_dir: str | None, endpoint: str | None, found: dict[str, Any], steps: str, color: bool
    ) -> None:
        """`found`: the reply of Client.dashboard, so that the first screen is full."""
        super().__init__(ansi_color=True)
        self.animation_level = "none"
        self._run_dir, self._endpoint = run_dir, endpoint
        self._styles = {name: Style.parse(text) for name, text in (COLORS if color else PLAIN).items()}
        self.board = Board(self._styles)
        self.picture = Picture()
        self.picture.seed(found, time.time())
        self.view = View(steps=steps)
        self._events: list[tuple[float, str]] = []
        self._heard_s = time.monotonic()
        self._alerts_stale = False

    def compose(self) -> ComposeResult:
        yield self.board
        yield Keys(self._styles["dim"])

    def on_mount(self) -> None:
        self.board.focus()
        self.run_worker(self._listen(), exclusive=False)
        self.run_worker(self._ask(), exclusive=False)
        self.set_interval(LOOK_S, self._look)

    def on_resize(self) -> None:
        self.draw()

    def action_explain(self) -> None:
        self.view = self.view._replace(explain=not self.view.explain)
        self.draw()

    def action_pause(self) -> None:
        self.view = self.view._replace(paused=not self.view.paused)
        self.draw()

    def draw(self) -> None:
        """Show the picture as it is."""
        if not self.board.is_attached:
            return  # the screen is being left
        width = self.board.scrollable_content_region.width
        if width > 0:
            self.board.show(panels.screen(self.picture, width, self.view))

    # --- feeding -------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """The stream, for as long as the screen is there; reconnects by itself."""
        loop = asyncio.get_running_loop()
        async with AsyncSubscriber(self._run_dir) as subscriber:
            async for topic, body in subscriber:
                if topic.startswith(("event.", "alert.")):
                    self._happened(topic, body)
                elif self.picture.take(topic, body):
                    self._heard_s = time.monotonic()
                    loop.call_later(SETTLE_S, self._tick, float(body["time_s"]))

    def _happened(self, topic: str, body: dict[str, Any]) -> None:
        self._alerts_stale = self._alerts_stale or topic.startswith(("event.alert", "alert.", "event.epoch"))
        if not topic.startswith("alert."):
            # What happened before this screen was opened comes in the order of topics.
            self._events.append((float(body.get("time_s") or time.time()), panels.described(topic, body)))
            self._events = sorted(self._events)[-panels.MAX_EVENTS :]
            self.view = self.view._replace(events=tuple(text for _, text in self._events))

    def _tick(self, time_s: float) -> None:
        self.picture.tick(time_s)
        if not self.view.paused:
            self.draw()

    def _look(self) -> None:
        """Is the stream alive? Draws only when the answer matters."""
        silent_s = time.monotonic() - self._heard_s
        if silent_s < panels.SILENT_S:
            silent_s = 0.0
        if silent_s != self.view.silent_s:
            self.view = self.view._replace(silent_s=silent_s)
            self.draw()

    async def _ask(self) -> None:
        """What is not published: the broker's view, and the alerts after one of them changed."""
        async with AsyncClient(self._run_dir, self._endpoint, cache=False) as client:
            await self._remember(client)
            while True:
                try:
                    self.picture.daemon = await client.status(deadline_s=RETRY_S)
                except WalledError:
                    self.picture.daemon = None
                if self._alerts_stale:
                    self._alerts_stale = False
                    try:
                        self.picture.alerts = (await client.ask_monitor("alerts.list"))["alerts"]
                    except WalledError:
                        self._alerts_stale = True
                await asyncio.sleep(STATUS_S)

    async def _remember(self, client: AsyncClient) -> None:
        now_s, found = time.time(), {}
        for name, metric in HISTORIES.items():
            try:
                found[name] = (await client.ask_monitor("history", metric=metric, since_s=POINTS))["series"]
            except WalledError:
                continue  # nothing has been measured of it yet
        self.picture.remember(found, now_s)
        self.draw()
