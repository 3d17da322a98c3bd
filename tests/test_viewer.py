"""The viewer as its users meet it, in headless Chromium: what it shows is held against a reference in Python."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from browser import started_browser
from fake_server import FakeServer, chunks, fake_server
from leanthink.data.traces.trace import Trace, read_traces, to_line
from server import serving

sys.path.append(str(Path(__file__).parent.parent / "bench"))
from viewer_speed import made_up, served

HORIZON = made_up(600, policy="horizon")
RANDOM = made_up(640, policy="random")  # its problem is the same, its text goes on a little longer
HEADS = replace(RANDOM, id="heads", problem="Another?", policy="snapkv", evicted_at=None, scores=None, correct=None)
OTHER = replace(HORIZON, id="full", problem="Full?", policy="full", budget=None, evicted_at=(None,) * 600, evictions=0,
                scores=None, correct=False, peak_slots=623, kept_slots=623)  # fmt: skip
OLD = json.loads(to_line(HORIZON)) | {"trace": 1}
del OLD["scores"], OLD["token_chars"], OLD["fingerprint"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served([HORIZON, RANDOM, HEADS, OTHER]) as address:
        yield address


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a page of its own; at the end, no page may have complained."""
    complaints: list[str] = []
    contexts = []

    def open_page(address: str, *, wait: str = ".line", allow: str = "$^", **settings: Any) -> Any:
        contexts.append(browser.new_context(**({"viewport": {"width": 1200, "height": 800}} | settings)))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def heard(said: Any) -> None:
            if said.type in ("error", "warning") and not re.search(allow, said.text):
                complaints.append(said.text)

        page.on("console", heard)
        page.goto(address)
        page.locator(wait).first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def seek(page: Any, time: int) -> None:
    page.locator("#time").evaluate("(e, t) => { e.value = t; e.dispatchEvent(new Event('input')); }", time)
    painted(page)


def wait_until(page: Any, holds: Callable[[], bool]) -> None:
    """Lets the page go on until this holds; a thousand frames are more than any of it takes."""
    for _ in range(1000):
        if holds():
            return
        painted(page)
    raise AssertionError("it never held")


def painted(page: Any) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def number(page: Any, part: str, pane: int = 0) -> int:
    return int(re.sub(r"\D", "", page.locator(f"[data-part={part}]").nth(pane).inner_text()))


def time_of(page: Any) -> int:
    return int(page.locator("#time").input_value())


def tokens_in_view(page: Any, pane: int = 0) -> dict[int, set[str]]:
    """The classes of every token that is in the document."""
    found = (
        page.locator(".text")
        .nth(pane)
        .evaluate(
            "(box) => [...box.querySelectorAll('[data-token]')].map((e) => [Number(e.dataset.token), e.className])"
        )
    )
    return {token: set(names.split()) for token, names in found}


# -- reference implementations --------------------------------------------------------------------------------------


def held(trace: Trace, time: int) -> list[int]:
    """Tokens with a slot when so many are generated; the last one of all is never fed."""
    assert trace.evicted_at is not None
    return [i for i in range(min(time, len(trace.token_ids) - 1)) if (at := trace.evicted_at[i]) is None or at > time]


def state(trace: Trace, token: int, time: int) -> str:
    assert trace.evicted_at is not None
    at = trace.evicted_at[token]
    return "future" if token >= time else "gone" if at is not None and at <= time else "held"


def levels(trace: Trace) -> list[list[int]]:
    """The shade of each number, by how many of all numbers are below."""
    assert trace.scores is not None
    numbers = trace.scores.numbers_TC()
    known = sorted(x for row in numbers for x in row if not math.isnan(x))
    shares = (0.3, 0.5, 0.65, 0.77, 0.86, 0.92, 0.96, 0.98, 0.993)
    bounds = [known[math.floor(share * (len(known) - 1))] for share in shares]
    return [[sum(x > bound for bound in bounds) for x in row] for row in numbers]


# -- what is shown ---------------------------------------------------------------------------------------------------


def test_a_trace_is_shown_at_its_end_with_its_numbers(visit: Any, address: str) -> None:
    page = visit(address)
    assert time_of(page) == 600
    assert number(page, "held") == HORIZON.kept_slots == 24 + len(held(HORIZON, 600))
    assert number(page, "full") == 24 + 599
    assert number(page, "evictions") == HORIZON.evictions
    assert page.locator("#problem-text").inner_text() == HORIZON.problem
    assert "5" in page.locator("#gold").inner_text()
    assert page.locator(".verdict").inner_text() == "✓ right"
    assert page.locator("[data-part=settings]").inner_text() == "budget 75 · window 32 · interval 64"
    shown = "".join(page.locator(".text .line").all_inner_texts()).replace("↵", "")
    assert re.sub(r"\s", "", shown) in re.sub(r"\s", "", HORIZON.text)
    assert len(shown) > 300


@pytest.mark.parametrize("time", [0, 1, 138, 139, 140, 400, 560, 599, 600])
def test_sliding_shows_at_each_time_what_was_held_then(visit: Any, address: str, time: int) -> None:
    page = visit(address)
    seek(page, time)
    assert page.locator("#clock").inner_text() == f"{time} / 600"
    assert number(page, "held") == 24 + len(held(HORIZON, time))
    assert number(page, "full") == 24 + min(time, 599)
    shades = levels(HORIZON)
    tokens = tokens_in_view(page)
    assert len(tokens) > 50
    for token, names in tokens.items():
        assert state(HORIZON, token, time) in names
        assert ("answer" in names) == (token >= HORIZON.thought_tokens)
        reached = max((c for c, h in enumerate((32, 64, 128, 256, 512, 1024)) if h <= time - 1 - token), default=0)
        if "held" in names:
            assert f"l{shades[token][reached]}" in names


def test_the_peak_of_the_curve_is_the_peak_of_the_trace(visit: Any, address: str) -> None:
    page = visit(address)
    found = page.evaluate(
        """async () => {
          const { fromTrace } = await import("/viewer/thought.js");
          const found = [];
          for (let n = 0; n < 4; n++) {
            const thought = fromTrace(await (await fetch(`/viewer/traces/${n}.json`)).json());
            const most = Array.from({ length: thought.tokens + 1 }, (_, t) => thought.mostSlots(t));
            found.push([Math.max(...most), thought.heldSlots(thought.tokens), thought.bursts.length]);
          }
          return found;
        }"""
    )
    assert found == [[t.peak_slots, t.kept_slots, t.evictions] for t in (HORIZON, RANDOM, HEADS, OTHER)]


def test_a_trace_of_the_engine_is_shown_as_it_happened(visit: Any, folder: Path, inside: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    settings = ("--model", folder, "--predictor", folder / "own.safetensors", "--max-new-tokens", 150, "--trace", path)
    bounds = ("--budget", 24, "--recent-window", 6, "--eviction-interval", 8)
    assert inside("generate", "Sieh", "So?", *bounds, *settings).code == 0
    first, second = read_traces(path)
    with served([first, second]) as address:
        page = visit(address)
        assert (number(page, "held"), number(page, "evictions")) == (first.kept_slots, first.evictions)
        page.locator("#trace").select_option("1")
        page.locator("#problem-text", has_text="So?").wait_for()
        for time in (31, 32, 33, 149):
            seek(page, time)
            assert number(page, "held") == len(second.prompt_ids) + len(held(second, time))
        assert page.evaluate(
            """async () => {
              const { fromTrace } = await import("/viewer/thought.js");
              const thought = fromTrace(await (await fetch("/viewer/traces/1.json")).json());
              const most = Array.from({ length: thought.tokens + 1 }, (_, t) => thought.mostSlots(t));
              return [Math.max(...most), thought.texts.join("")];
            }"""
        ) == [second.peak_slots, second.text]  # fmt: skip


def test_playing_goes_on_to_the_end_and_can_be_paused(visit: Any, address: str) -> None:
    page = visit(address)
    seek(page, 0)
    page.locator("#speed").select_option("100")
    page.locator("#play").click()
    page.locator("#play[aria-label=Pause]").wait_for()
    wait_until(page, lambda: time_of(page) >= 20)
    page.evaluate("document.activeElement.blur()")  # away from the button: the space is the page's
    page.keyboard.press(" ")
    page.locator("#play[aria-label=Play]").wait_for()
    paused = time_of(page)
    for _ in range(5):
        painted(page)
    assert time_of(page) == paused < 600
    page.locator("#speed").select_option("3000")
    page.locator("#play").click()
    wait_until(page, lambda: time_of(page) == 600)
    page.locator("#play[aria-label=Play]").wait_for()
    assert number(page, "held") == HORIZON.kept_slots


def test_two_policies_stand_side_by_side_at_one_time(visit: Any, address: str) -> None:
    page = visit(address)
    page.keyboard.press("c")
    page.locator(".pane").nth(1).locator(".line").first.wait_for()
    assert page.locator(".pane h2").all_inner_texts() == ["horizon", "random"]
    assert page.locator("#time").get_attribute("max") == "640"
    for time in (300, 620):
        seek(page, time)
        assert number(page, "held", 0) == 24 + len(held(HORIZON, time))
        assert number(page, "held", 1) == 24 + len(held(RANDOM, time))
        for token, names in tokens_in_view(page, 1).items():
            assert state(RANDOM, token, time) in names
    page.keyboard.press("c")
    page.locator(".pane").nth(1).wait_for(state="detached")
    page.locator("#trace").select_option("3")
    page.locator("h2", has_text="full").wait_for()
    assert page.locator("#compare").is_disabled()


def test_search_finds_marks_and_goes_to_each_match(visit: Any, address: str) -> None:
    page = visit(address)
    seek(page, 100)
    wanted = "so the"
    count = HORIZON.text.count(wanted) if wanted in HORIZON.text else 0
    wanted = wanted if count > 1 else "wait "
    starts = [found.start() for found in re.finditer(re.escape(wanted), HORIZON.text)]
    assert len(starts) > 2
    page.keyboard.press("/")
    page.keyboard.type(wanted.upper())
    assert page.locator("#search-count").inner_text() == str(len(starts))
    assert HORIZON.token_chars is not None
    ends = [sum(HORIZON.token_chars[: i + 1]) for i in range(600)]
    first_tokens = [next(i for i, end in enumerate(ends) if end > start) for start in starts]
    for step, key in enumerate(["Enter", "Enter", "Shift+Enter"]):
        page.locator("#search").press(key)
        painted(page)
        match = (0, 1, 0)[step]
        assert page.locator("#search-count").inner_text() == f"{match + 1} / {len(starts)}"
        marked = [token for token, names in tokens_in_view(page).items() if "hit-now" in names]
        assert min(marked) == first_tokens[match]
        assert time_of(page) > max(marked)  # what is found is also shown
    page.keyboard.press("Escape")
    page.locator("body").press("N")
    painted(page)
    assert page.locator("#search-count").inner_text() == f"{len(starts)} / {len(starts)}"
    page.locator("#search").fill("no such text")
    assert page.locator("#search-count").inner_text() == "0"


def test_every_key_of_the_help_page_works(visit: Any, address: str) -> None:
    page = visit(address)
    times = sorted({at for at in HORIZON.evicted_at or () if at is not None})
    body = page.locator("body")
    body.press("Home")
    painted(page)
    assert time_of(page) == 0
    for at in times[:3]:
        body.press(".")
        painted(page)
        assert time_of(page) == at
    body.press(",")
    body.press("ArrowRight")
    body.press("Shift+ArrowRight")
    body.press("ArrowLeft")
    painted(page)
    assert time_of(page) == times[1] + 100
    body.press("End")
    painted(page)
    assert time_of(page) == 600
    body.press("+")
    assert page.locator("#speed").input_value() == "300"
    body.press("-")
    body.press("-")
    assert page.locator("#speed").input_value() == "30"
    body.press("h")
    assert page.locator("#channel").input_value() == "0"
    body.press("f")
    assert not page.locator("#follow").is_checked()
    body.press("?")
    assert page.locator("#help").is_visible()
    told = page.locator("#help kbd").all_inner_texts()
    assert {"space", ",", ".", "h", "c", "/", "n", "N", "f", "t", "?"} <= set(told)
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()


def test_the_arrow_keys_in_the_text_tell_of_each_token(visit: Any, address: str) -> None:
    page = visit(address)
    seek(page, 400)
    page.locator(".text").focus()
    page.keyboard.press("ArrowLeft")
    assert HORIZON.token_chars is not None
    assert HORIZON.evicted_at is not None

    def text(token: int) -> str:
        first = sum(HORIZON.token_chars[:token])  # type: ignore[index]
        return HORIZON.text[first : first + HORIZON.token_chars[token]]  # type: ignore[index]

    assert time_of(page) == 400, "the arrows are the text's while it has the focus"
    said = page.locator("#spoken").inner_text()
    assert said == f"{json.dumps(text(398))}, token 398, position 422, thought, held, age 1" + later(398)
    page.keyboard.press("ArrowUp")
    token = int(re.search(r"token (\d+)", page.locator("#spoken").inner_text())[1])  # type: ignore[index]
    assert 398 - 60 < token < 398
    gone = max(i for i in range(398) if state(HORIZON, i, 400) == "gone")
    for _ in range(token - gone if token > gone else 0):
        page.keyboard.press("ArrowLeft")
    at = HORIZON.evicted_at[gone]
    assert at is not None
    if token > gone:
        assert f"evicted at {at} by horizon, at age {at - 1 - gone} (eviction" in page.locator("#spoken").inner_text()
        assert "chosen" in tokens_in_view(page)[gone]


def later(token: int) -> str:
    at = (HORIZON.evicted_at or ())[token]
    return "" if at is None else f"; evicted later, at {at}"


def test_pointing_at_a_token_shows_its_scores_and_which_of_them_ranks_it(visit: Any, address: str) -> None:
    page = visit(address)
    seek(page, 300)
    page.locator("#follow").uncheck()
    token = next(token for token, names in tokens_in_view(page).items() if "held" in names and token < 200)
    page.locator(f"[data-token='{token}']").first.hover()
    assert HORIZON.scores is not None
    numbers = HORIZON.scores.numbers_TC()[token]
    assert page.locator("#card dt").all_inner_texts() == [f"from {h} on" for h in (32, 64, 128, 256, 512, 1024)]
    shown = [float(text) for text in page.locator("#card dd").all_inner_texts()]
    assert shown == pytest.approx(numbers, abs=0.006)
    age = 300 - 1 - token
    ranked = max((h for h in (32, 64, 128, 256, 512, 1024) if h <= age), default=32)
    assert page.locator("#card dt:has(+ dd.ranked)").inner_text() == f"from {ranked} on"
    page.mouse.move(5, 5)
    assert not page.locator("#card").is_visible()


def test_shading_by_one_horizon_ignores_the_age(visit: Any, address: str) -> None:
    page = visit(address)
    page.locator("#channel").select_option("4")
    painted(page)
    before = {token: names for token, names in tokens_in_view(page).items() if "held" in names}
    seek(page, 599)
    after = tokens_in_view(page)
    levels_of = lambda names: {name for name in names if re.fullmatch(r"l\d", name)}  # noqa: E731
    same = [token for token in before if token in after and "held" in after[token]]
    assert len(same) > 20
    assert all(levels_of(before[token]) == levels_of(after[token]) for token in same)


def test_pictures_are_painted_and_lead_to_their_time(visit: Any, address: str) -> None:
    page = visit(address, allow="willReadFrequently")  # only a test reads the pixels
    painted_pixels = """(canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.filter((value, k) => k % 4 === 3 && value > 0).length;
    }"""
    for part in ("curve", "map", "strip"):
        assert page.locator(f"[data-part={part}]").evaluate(painted_pixels) > 500
    before = page.locator("[data-part=strip]").evaluate(painted_pixels)
    box = page.locator("[data-part=charts]").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    painted(page)
    assert abs(time_of(page) - 300) <= 2
    assert page.locator("[data-part=strip]").evaluate(painted_pixels) < before


def test_a_policy_per_head_shows_its_curve_and_says_what_is_not_known(visit: Any, address: str) -> None:
    page = visit(address)
    page.locator("#trace").select_option("2")
    page.locator("h2", has_text="snapkv").wait_for()
    painted(page)
    assert "not recorded" in page.locator("[data-part=note]").inner_text()
    assert number(page, "held") == HEADS.kept_slots
    assert not page.locator(".map").is_visible()
    assert all("gone" not in names for names in tokens_in_view(page).values())


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_can_be_opened_in_the_page_also_one_of_version_1(visit: Any, address: str, tmp_path: Path) -> None:
    page = visit(address)
    (tmp_path / "old.jsonl").write_text(json.dumps(OLD) + "\n")
    page.locator("#file").set_input_files(tmp_path / "old.jsonl")
    page.locator("[data-part=note]", has_text="version 1").wait_for()
    assert number(page, "held") == HORIZON.kept_slots
    assert "[599]" in page.locator(".text").inner_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trace": 4}, "trace version 4: this viewer reads versions 1 to 3"),
        ({"token_ids": None}, "lacks token_ids"),
        ({"evicted_at": [1]}, "evicted_at has 1 entries for 600 tokens"),
    ],
)
def test_a_file_that_is_none_is_refused_in_words(
    visit: Any, address: str, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    page = visit(address)
    (tmp_path / "bad.jsonl").write_text(json.dumps(OLD) + "\n" + json.dumps(OLD | change) + "\n")
    page.locator("#file").set_input_files(tmp_path / "bad.jsonl")
    page.locator("#message", has_text="bad.jsonl, line 2").wait_for()
    assert message in page.locator("#message").inner_text()
    assert number(page, "held") == HORIZON.kept_slots, "what was shown is still there"


def test_only_the_lines_in_view_are_in_the_document(visit: Any) -> None:
    with served([made_up(16_384, policy="horizon")]) as address:
        page = visit(address)
        for time in (16_384, 0, 9_000):
            seek(page, time)
            assert 50 < len(tokens_in_view(page)) < 1500
            assert time == 0 or time - 1 in tokens_in_view(page), "the text follows the time"


# -- looks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_cut_off_at_phone_width(visit: Any, address: str, width: int) -> None:
    page = visit(address, viewport={"width": width, "height": 844}, has_touch=True)
    for panes in (1, 2):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".pane").count() == panes
        for button in page.locator("footer button, header button:visible").all():
            box = button.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        for text in page.locator(".text").all():
            assert text.bounding_box()["height"] >= 100
            assert text.evaluate("(e) => e.scrollWidth <= e.clientWidth")
        if panes == 1:
            page.locator("#compare").select_option("1")
            page.locator(".pane").nth(1).locator(".line").first.wait_for()


def test_dark_and_light_follow_the_system_until_they_are_chosen(visit: Any, address: str) -> None:
    page = visit(address, color_scheme="dark")
    background = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.keyboard.press("t")
    light = page.evaluate(background)
    assert brightness(dark) < 0.1 < 0.8 < brightness(light)
    page.reload()
    page.locator(".line").first.wait_for()
    assert page.evaluate(background) == light
    assert visit(address, color_scheme="light").evaluate(background) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast_enough_to_read(visit: Any, address: str, scheme: str) -> None:
    page = visit(address, color_scheme=scheme)
    page.keyboard.press("c")
    page.locator(".pane").nth(1).locator(".line").first.wait_for()
    pairs = page.evaluate(
        """() => [...document.querySelectorAll(".pane")].flatMap((pane) => {
          const colour = (text) => {
            const probe = pane.appendChild(document.createElement("i"));
            probe.style.color = text;
            const found = getComputedStyle(probe).color;
            probe.remove();
            const paint = new OffscreenCanvas(1, 1).getContext("2d");
            paint.fillStyle = found;
            paint.fillRect(0, 0, 1, 1);
            return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
          };
          const on = (share, paint = "accent") => colour(`color-mix(in srgb, var(--${paint}) ${share}%, var(--sheet))`);
          return [
            ["ink", colour("var(--ink)"), on(0)], ["ink on the strongest shade", colour("var(--ink)"), on(58, "tint")],
            ["soft", colour("var(--soft)"), on(0)], ["soft on paper", colour("var(--soft)"), colour("var(--paper)")],
            ["evicted", colour("var(--faded)"), on(0)], ["policy", colour("var(--accent)"), on(13)],
            ["right", colour("var(--good)"), on(0)], ["wrong", colour("var(--bad)"), on(0)],
            ["hit", colour("var(--ink)"), colour("var(--hit)")],
          ];
        })"""
    )
    assert len(pairs) == 18
    found = {name: contrast(one, other) for name, one, other in pairs}
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}


def luminance(rgb: list[float]) -> float:
    """Relative luminance as WCAG 2 defines it."""
    linear = [c / 12.92 if (c := value / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for value in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def brightness(colour: str) -> float:
    return luminance([float(part) for part in re.findall(r"[\d.]+", colour)[:3]])


def test_every_control_has_a_name(visit: Any, address: str) -> None:
    page = visit(address)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, canvas, [role=group], dialog")]
          .filter((e) => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.labels?.length ||
            (e.tagName === "BUTTON" && e.textContent.trim())))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []


# -- live ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def live(visit: Any) -> Iterator[tuple[FakeServer, Any]]:
    """A fake server of models and its page."""
    with fake_server() as (fake, address):
        page = visit(address, wait="#live-open")
        yield fake, page


def begin(page: Any, **fields: str) -> None:
    page.locator("#live-open").click()
    for name, text in fields.items():
        page.locator(f"#live-{name}").fill(text)
    page.locator("#live-start").click()


def test_a_thought_is_watched_as_it_is_written(live: tuple[FakeServer, Any]) -> None:
    fake, page = live
    fake.chunks = list(chunks(HORIZON))
    fake.hold.clear()
    begin(page, prompt="What do two and three make?", policy="horizon", budget="75", tokens="700", key="secret")
    page.locator("[data-part=held]").wait_for()
    middle = len(fake.chunks) // 2 - 1  # tokens that have come
    wait_until(page, lambda: number(page, "full") >= 24 + middle - 1)
    assert number(page, "held") == 24 + len([i for i in held(HORIZON, middle - 1) if i < middle - 1])
    assert page.locator("#live-open").inner_text() == "Stop"
    fake.hold.set()
    page.locator("#live-open", has_text="Live").wait_for()
    wait_until(page, lambda: time_of(page) == 600)
    assert number(page, "held") == HORIZON.kept_slots
    assert number(page, "evictions") == HORIZON.evictions
    assert fake.keys == ["Bearer secret"]
    assert fake.asked == [
        {
            "model": "fake-model",
            "messages": [{"role": "user", "content": "What do two and three make?"}],
            "policy": "horizon",
            "budget": 75,
            "max_tokens": 700,
            "stream": True,
            "kv_events": True,
        }
    ]
    seek(page, 300)
    for token, names in tokens_in_view(page).items():
        assert state(HORIZON, token, 300) in names
    assert page.locator("#channel option").count() == 7


def test_what_a_stream_does_not_say_is_left_out(live: tuple[FakeServer, Any]) -> None:
    fake, page = live
    fake.chunks = [
        {"choices": [{"delta": {"role": "assistant"}}], "leanthink": "odd"},
        {"choices": [{"delta": {"reasoning_content": "so "}}]},
        {
            "choices": [],
            "leanthink": {"eviction": {"positions": [0, -1, 99, "x"], "importance": [[0], 4]}, "budget": 5},
        },
        {"choices": [{"delta": {"reasoning_content": "it <b>is"}}], "leanthink": {"eviction": [1], "horizons": "far"}},
        {"choices": [{"delta": {"content": "5"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"total_tokens": 3}},
    ]
    begin(page)
    page.locator("#live-open", has_text="Live").wait_for()
    page.locator(".line .answer").wait_for()
    painted(page)
    assert page.locator(".text").inner_text() == "so it <b>is5"
    assert "gone" in tokens_in_view(page)[0], "position 0, of a prompt of which no length was told"
    assert number(page, "evictions") == 1


def test_a_refusal_is_shown_in_the_words_of_the_server(visit: Any) -> None:
    with fake_server() as (fake, address):
        fake.refusal = (400, "budget 99999 is above this server's limit")
        page = visit(address, wait="#live-open", allow="status of 400")
        begin(page)
        page.locator("#message", has_text="Live: budget 99999 is above this server's limit").wait_for()


def test_a_stream_that_ends_early_says_so_and_can_be_stopped(live: tuple[FakeServer, Any]) -> None:
    fake, page = live
    fake.chunks = list(chunks(HORIZON))[:120]
    fake.hold.clear()
    begin(page)
    page.locator("[data-part=held]").wait_for()
    page.locator("#live-open", has_text="Stop").click()
    page.locator("#live-open", has_text="Live").wait_for()
    assert not page.locator("#message").is_visible()
    fake.hold.set()
    begin(page)
    page.locator("#message", has_text="ended before the request had finished").wait_for()


@pytest.mark.slow
def test_live_on_the_real_server_shows_what_the_server_did(visit: Any, tmp_path: Path) -> None:
    limits = [
        "--max-slots",
        500,
        "--max-new-tokens",
        300,
        "--max-num-seqs",
        2,
        "--max-answer-slots",
        200,
        "--kv-gib",
        0.25,
    ]
    with serving(tmp_path / "log", *limits) as server:
        page = visit(f"{server.url}/viewer/", wait="#live-open")
        page.set_default_timeout(60_000)
        begin(page, prompt="What is 4821 times 377?", policy="horizon", budget="48", tokens="200")
        page.locator("[data-part=held]").wait_for()
        page.locator("#live-open", has_text="Live").wait_for()
        assert not page.locator("#message").is_visible()
        told = server.metrics()
    tokens = time_of(page)
    assert tokens == sum(told.get(f'leanthink_tokens_total{{kind="{kind}"}}', 0) for kind in ("thought", "answer"))
    assert number(page, "evictions") == told["leanthink_evictions_total"] >= 1
    assert number(page, "held") <= number(page, "full") - 64, "an interval of 64 was evicted at least once"
    assert page.locator("#channel option").count() == 8, "the horizons of the shipped predictor"
    assert any("gone" in names for names in seen_from_the_start(page))


def seen_from_the_start(page: Any) -> list[set[str]]:
    """The classes of the first tokens, as things stand at the end."""
    page.locator(".text").first.evaluate("(box) => { box.scrollTop = 0; }")
    painted(page)
    return list(tokens_in_view(page).values())
