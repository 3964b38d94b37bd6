# SPDX-License-Identifier: GPL-2.0-only
"""The screen on terminals without UTF-8 or without colours."""

from __future__ import annotations

import pytest
from rich.color import Color
from rich.style import Style

from ipttrace.tui.app import TraceApp
from ipttrace.tui.cells import cell_len
from ipttrace.tui.config.settings import Settings
from ipttrace.tui.feed.source import FileSource
from ipttrace.tui.plain import ascii_of, utf8
from tests.tui.harness import screen_text, until
from tests.tui.replayed import LAB, SIZES, replayed, seq_of


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keys", ["", "2", "3", "4"])
async def test_a_terminal_without_utf8_gets_nothing_but_ascii(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], keys: str
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    async with replayed(size=size) as (app, pilot):
        await pilot.press(*keys)
        await pilot.pause()
        strips = app.screen._compositor.render_strips()
        drawn = "\n".join(strip.text for strip in strips)
        assert drawn.isascii()
        assert all(strip.cell_length == size[0] for strip in strips)
        assert keys or "+ ACCEPT" in drawn


async def test_in_ascii_keys_have_names_and_none_that_is_another_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    async with replayed(size=(200, 50)) as (app, pilot):
        footer = screen_text(app)[-1]
        for name in ("Enter Detail", "Bksp Back", "Space Pause"):
            assert name in footer
        await pilot.press("v")
        assert "Bksp back" in screen_text(app)[1]
        # AND in the help
        await pilot.press("question_mark")
        await until(pilot, lambda: "the packet's complete journey" in "".join(screen_text(app)))
        lines = screen_text(app)
        assert any("Enter d " in line for line in lines)
        assert any("Up k " in line for line in lines)


@pytest.mark.parametrize(
    ("environ", "can"),
    [
        ({}, True),
        ({"LANG": "en_US.UTF-8"}, True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, False),
        ({"LC_CTYPE": "C.utf8", "LANG": "C"}, True),
        ({"LANG": "de_DE.ISO-8859-1"}, False),
        ({"LANG": "en_US.UTF-8", "TERM": "linux"}, False),
    ],
)
def test_the_locale_and_the_terminal_say_what_can_be_drawn(
    environ: dict[str, str], can: bool
) -> None:
    assert utf8(environ) == can


@pytest.mark.parametrize("char", ["✓", "漢", "é", "\u0301", "│"])
def test_a_replaced_character_keeps_its_width(char: str) -> None:
    assert ascii_of(char).isascii()
    assert cell_len(ascii_of(char)) == cell_len(char)


async def test_a_drop_stands_out_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with replayed() as (app, pilot):
        app.rows.move_to(seq_of(app, lambda row: row.verdict == "DROP") + 1)
        await until(pilot, lambda: not app.rows.follow)
        strips = [app.rows.render_line(y) for y in range(app.rows.size.height)]
        reverse = {
            segment.text.strip(): bool(segment.style and segment.style.reverse)
            for strip in strips
            for segment in strip
        }
        assert reverse["✗ DROP"]
        assert not reverse["✓ ACCEPT"]


async def test_dim_text_can_be_read_on_the_selected_row() -> None:
    async with replayed() as (app, pilot):
        # GIVEN a row whose addresses are those of the row above, and so dim
        app.rows.move_to(seq_of(app, lambda row: row.chain == "BLOCKLIST"))
        await pilot.pause()
        strips = app.rows._strips
        dim, chosen = strips._style("same"), strips._style("same", "cursor")
        assert dim.color != chosen.color
        assert chosen.color == strips._style("endpoints", "cursor").color
        # AND colours that mean something stay
        assert strips._style("drop", "cursor").color == strips._style("drop").color


def role_at(app: TraceApp, role: str, under: str = "") -> Style:
    return app.rows._strips._style(role, under)


@pytest.mark.parametrize("term", ["linux", "xterm"])
async def test_with_16_colours_all_can_be_read_and_a_drop_stands_out(
    monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("COLORTERM")
    async with replayed() as (app, _):
        assert app.console.color_system == "standard"
        # THEN only the terminal's own colours are used, on its own background
        roles = (*("accept", "drop", "nat", "filter", "same", "rule", "chain"), "netns3", "rail0")
        for role in roles:
            style = role_at(app, role)
            assert style.color is not None
            assert style.color.is_default or style.color.is_system_defined
            assert style.bgcolor is None or style.bgcolor.is_default
        drop = role_at(app, "drop")
        assert drop.color is not None
        assert drop.color.number == 9
        assert drop.bold
        assert drop.color not in {role_at(app, role).color for role in roles if role != "drop"}
        # AND the selected row is reversed, in one colour except for the drop
        chosen = [role_at(app, role, "cursor") for role in roles if role != "drop"]
        assert all(style.reverse for style in chosen)
        assert len({style.color for style in chosen}) == 1
        assert role_at(app, "drop", "cursor").color == drop.color


async def test_with_16_colours_and_no_color_the_selected_row_and_a_drop_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "linux")
    monkeypatch.delenv("COLORTERM")
    monkeypatch.setenv("NO_COLOR", "1")
    async with replayed() as (app, pilot):
        app.rows.move_to(seq_of(app, lambda row: row.verdict == "DROP"))
        await pilot.pause()
        lines = [app.rows.render_line(y) for y in range(app.rows.size.height)]
        chosen = app.rows.cursor - app.rows._base - app.rows._top
        for filter_ in app.get_line_filters():
            lines = [line.apply_filter(filter_, app.rows.background_colors[1]) for line in lines]
        styles = [segment.style for line in lines for segment in line if segment.style]
        colours = [colour for style in styles for colour in (style.color, style.bgcolor)]
        assert all(colour is None or colour.is_default for colour in colours)
        reversed_ = {
            segment.text.strip(): bool(segment.style and segment.style.reverse)
            for segment in lines[chosen]
        }
        assert not reversed_["x DROP"]
        assert sum(reversed_.values()) == len(reversed_) - 1
        assert not any(s.style and s.style.reverse for s in lines[chosen + 1] if "ACCEPT" in s.text)


async def test_an_empty_number_of_drops_does_not_look_like_a_drop_on_the_selected_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "linux")
    monkeypatch.delenv("COLORTERM")
    async with replayed(size=(130, 40)) as (app, pilot):
        await pilot.press("2")
        await until(pilot, lambda: "Chain PREROUTING" in "\n".join(screen_text(app)))
        strips = app.screen._compositor.render_strips()
        chosen = next(strip for strip in strips if "Chain PREROUTING" in strip.text)
        # THEN the row is reversed in one colour up to the scrollbar: that of the drops is another
        colours = {segment.style.color for segment in list(chosen)[:-1] if segment.style}
        assert len(colours) == 1


@pytest.mark.parametrize("no_color", [True, False])
async def test_dim_text_on_the_selected_row_has_contrast_in_a_light_theme(
    monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    async with replayed() as (app, pilot):
        app.theme = "textual-light"
        await pilot.pause()
        for role in ("same", "time", "rule", "policy", "cost", "gone"):
            style = role_at(app, role, "cursor")
            assert style.color is not None
            assert style.bgcolor is not None
            assert contrast(style.color, style.bgcolor) >= 4.5, role


def contrast(one: Color, other: Color) -> float:
    """The contrast ratio of two colours, 1 to 21, by WCAG 2."""

    def luminance(colour: Color) -> float:
        parts = [part / 255 for part in colour.get_truecolor()]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


async def test_the_theme_of_the_user_stays_with_16_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "linux")
    monkeypatch.delenv("COLORTERM")
    app = TraceApp(FileSource(LAB), title="x", settings=Settings(theme="nord"))
    assert app.theme == "nord"
