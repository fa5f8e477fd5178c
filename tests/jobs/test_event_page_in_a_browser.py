"""The page of an index does what it says in a real browser; skipped where there is none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.export_events import main
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
    const button = document.querySelectorAll("li button")[2], video = button.closest("section").querySelector("video");
    button.click();
    await new Promise((resolve) => video.addEventListener("seeked", resolve, { once: true }));
    video.pause();
    const picture = button.querySelector("img");
    return [Number(button.dataset.start), video.currentTime, video.error, picture.naturalWidth, button.className];
})()"""


def test_a_click_on_an_event_plays_its_video_from_there(chromium: Browser, tmp_path: Path) -> None:
    write_sample_run(tmp_path, clips=2)
    start, time, error, picture_width, state = chromium.run(page_of(tmp_path / "out"), SEEK, tmp_path / "page.png")
    assert start > 0
    assert time == pytest.approx(start, abs=0.5)  # it plays on until it is stopped
    assert (error, picture_width, state) == (None, 180, "on")
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
    assert chromium.run(page_of(tmp_path / "out"), script) == [str(tmp_path / "out"), 0]
    inline = """(async () => { const script = document.createElement('script'); script.textContent = 'window.ran = 1';
        document.body.append(script); return window.ran ?? 0; })()"""
    assert chromium.run(page_of(tmp_path / "out"), inline) == 0
