"""The page of an index does what it says in a real browser; skipped where there is none."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.export_events import main
from pipeline.records import Event
from tests.jobs.browser import CHROMIUM, Browser, browser
from tests.jobs.event_runs import SECOND, video_id, write_run, write_sample_run
from tests.jobs.test_export_events import EVIL, event

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def page_of(output: Path) -> str:
    assert main([str(output)]) == 0
    return (output / "export" / "index.html").as_uri()


SEEK = """(async () => {
    const button = document.querySelectorAll(".row")[2], video = button.closest("article").querySelector("video");
    button.click();
    await new Promise((resolve) => video.addEventListener("seeked", resolve, { once: true }));
    video.pause();
    const picture = new Image();
    picture.src = getComputedStyle(button.querySelector(".picture")).backgroundImage.slice(5, -2);
    await picture.decode();
    const shown = [picture.naturalWidth, button.ariaCurrent, document.querySelector(".on").dataset.for === button.id];
    return [Number(button.dataset.start), video.currentTime, video.error, ...shown];
})()"""


def test_a_click_on_an_event_plays_its_video_from_there(chromium: Browser, tmp_path: Path) -> None:
    write_sample_run(tmp_path, clips=2)
    start, time, error, *shown = chromium.run(page_of(tmp_path / "out"), SEEK, tmp_path / "page.png")
    assert start > 0
    assert time == pytest.approx(start, abs=0.5)  # it plays on until it is stopped
    assert (error, shown) == (None, [180, "true", True])
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_a_link_opens_the_page_at_its_second(chromium: Browser, tmp_path: Path) -> None:
    write_sample_run(tmp_path, clips=1)
    (video,) = (tmp_path / "videos").iterdir()
    url = f"{page_of(tmp_path / 'out')}#{video_id(str(video))},t=12.5"
    script = "(async () => { const v = document.querySelector('video'); v.pause(); return v.currentTime; })()"
    assert chromium.run(url, script) == pytest.approx(12.5, abs=0.5)


def test_hostile_words_run_nothing(chromium: Browser, tmp_path: Path) -> None:
    uri = "/films/none.mp4"
    write_run(tmp_path / "out", [(uri, 10 * SECOND, [event(1, uri, (1, 4), EVIL, EVIL)])])
    script = "new Promise((resolve) => setTimeout(() => resolve([document.title, document.images.length]), 300))"
    assert chromium.run(page_of(tmp_path / "out"), script) == ["Events of out", 0]
    inline = """(async () => { const script = document.createElement('script'); script.textContent = 'window.ran = 1';
        document.body.append(script); return window.ran ?? 0; })()"""
    assert chromium.run(page_of(tmp_path / "out"), inline) == 0


FILTER = """(async () => {
    const box = document.getElementById("filter"), hits = document.getElementById("hits"), told = [];
    new MutationObserver(() => told.push(hits.textContent)).observe(hits, { childList: true });
    const all = (selector) => Array.from(document.querySelectorAll(selector));
    const visible = (selector) => all(selector).filter((one) => one.checkVisibility());
    const counts = [];
    for (const words of ["MOVES", "zebra", "clip 1", ""]) {
        box.value = words;
        box.dispatchEvent(new Event("input"));
        await new Promise((resolve) => setTimeout(resolve, 400));
        counts.push([visible(".row").length, visible(".bar.event").length, visible("article").length]);
    }
    return [told, counts];
})()"""


def test_the_filter_narrows_events_and_videos_and_says_how_many_are_left(chromium: Browser, tmp_path: Path) -> None:
    clips = write_sample_run(tmp_path, clips=2)
    told, counts = chromium.run(page_of(tmp_path / "out"), FILTER)
    moving = sum("moves" in event.description for clip in clips for event in clip.events)
    second, both = len(clips[1].events), sum(len(clip.events) for clip in clips)
    assert counts == [[moving, moving, 2], [0, 0, 0], [second, second, 1], [both, both, 2]]
    hits = [f"{moving} events in 2 videos", "0 events in 0 videos", f"{second} events in 1 video"]
    assert told == [*hits, f"2 videos, {both} events"]


CAPTIONS = """(async () => {
    const track = document.querySelector("video").textTracks[0];
    track.mode = "hidden";
    await new Promise((resolve) => setTimeout(resolve, 500));
    return Array.from(track.cues, (cue) => [cue.startTime, cue.endTime, cue.getCueAsHTML().textContent]);
})()"""


def test_captions_of_a_page_that_was_opened_as_a_file_are_its_events(chromium: Browser, tmp_path: Path) -> None:
    uri = "/films/none.mp4"
    write_run(tmp_path / "out", [(uri, 10 * SECOND, [event(1, uri, (1, 4), EVIL)])], late_us=2 * SECOND)
    assert chromium.run(page_of(tmp_path / "out"), CAPTIONS) == [[3, 6, " ".join(EVIL.split())]]


def test_what_a_screen_reader_is_told(chromium: Browser, tmp_path: Path) -> None:
    """The accessibility tree as the browser computes it has landmarks, headings and names, no bars of timelines."""
    write_sample_run(tmp_path, clips=3)
    nodes = chromium.accessibility(page_of(tmp_path / "out"))
    roles = [role for role, _ in nodes]
    assert {"banner", "main", "search", "article", "status", "list", "heading"} <= set(roles)
    rows = [name for role, name in nodes if role == "button" and "\u2013" in name]
    assert len(rows) == roles.count("listitem") - 4  # of the legend
    assert all(name for role, name in nodes if role in ("button", "article", "heading", "Video", "searchbox"))
    assert ("searchbox", "Filter") in nodes
    assert [name for role, name in nodes if role == "article"] == [f"clip {number}.mp4" for number in range(3)]


LINK = """(async () => {
    const places = [];
    for (const place of [1500, 3, 1999]) {
        location.hash = "#" + document.querySelectorAll(".row")[place].id;
        await new Promise((resolve) => setTimeout(resolve, 500));
        const { top, bottom } = document.activeElement.getBoundingClientRect();
        places.push(document.activeElement.ariaCurrent === "true" && top >= 0 && bottom <= innerHeight);
    }
    return places;
})()"""


def test_a_link_into_a_long_page_brings_its_event_into_view(chromium: Browser, tmp_path: Path) -> None:
    def events(uri: str) -> list[Event]:
        found = [event(place, uri, (place, place + 1), "word " * (place + 1)) for place in range(20)]
        return [replace(one, event_id=f"{uri[7:-4]}-{one.event_id}") for one in found]

    uris = [f"/films/{number}.mp4" for number in range(101)]
    write_run(tmp_path / "out", [(uri, 20 * SECOND, events(uri)) for uri in uris])
    assert chromium.run(page_of(tmp_path / "out"), LINK) == [True] * 3
