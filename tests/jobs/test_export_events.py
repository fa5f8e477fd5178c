"""Exports hold what the tables hold, whatever the words are: read by strict parsers, and in a real browser."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.event_index import read_index
from jobs.export_events import main
from jobs.search_events import main as search
from jobs.webvtt import webvtt
from pipeline.records import Event
from pipeline.store import Store, StoreOptions, join
from tests.jobs.event_runs import SECOND, video_id, write_run, write_sample_run

EVIL = '</script><img src=x onerror="document.title=\'owned\'">& --> "it\'s"\n\nNOTE <b>'


def event(number: int, uri: str, span: tuple[float, float], description: str, label: str = "") -> Event:
    start_us, end_us = (round(second * SECOND) for second in span)
    return Event(f"e{number}", video_id(uri), f"c{uri}", start_us, end_us, label, description, 0.5, ("clamped",), ())


class Page(HTMLParser):
    """The elements of a page, each with its attributes, and the text inside; void elements do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """An index in which every text that comes from files and models is hostile."""
    uri = f"/films/{EVIL.replace('/', '|')}.mp4"
    events = [event(1, uri, (1, 4.0004), EVIL, EVIL), event(2, uri, (3, 9), "plain")]
    write_run(tmp_path / "out", [(uri, 10 * SECOND, events), ("s3://films/empty.mp4", 5 * SECOND, [])])
    return tmp_path / "out"


def test_hostile_words_stay_words_on_the_page(evil: Path) -> None:
    assert main([str(evil), "--format", "html", "--title", EVIL]) == 0
    page = Page((evil / "export" / "index.html").read_text())
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not page.all("b") or all(not attributes for attributes in page.all("b"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.texts.count(EVIL) >= 2  # the title and the description
    assert "script-src 'sha256-" in page.all("meta")[1]["content"]
    (video,) = page.all("video")
    assert video["src"].startswith("../../../")
    assert [article for article in page.all("article") if article["id"] == video_id("s3://films/empty.mp4")]
    assert any("cannot be played from here" in text for text in page.texts)


def test_the_page_has_every_event_where_it_belongs_on_the_timeline(tmp_path: Path) -> None:
    write_sample_run(tmp_path, clips=2)
    assert main([str(tmp_path / "out")]) == 0
    page = Page((tmp_path / "out" / "export" / "index.html").read_text())
    events = read_index(Store(), str(tmp_path / "out")).events.to_pylist()
    bars = [button for button in page.all("button") if button.get("class") == "bar event"]
    shown = {(float(re.search(r"left: ([\d.]+)", bar["style"])[1]), bar["data-for"]) for bar in bars}
    assert shown == {(round(row["start_us"] / 400_000, 3), row["event_id"]) for row in events}
    assert len(bars) == len(events) > 8
    rows = {row["id"]: float(row["data-start"]) for row in page.all("button") if row.get("class") == "row"}
    assert rows == {row["event_id"]: row["start_us"] / SECOND for row in events}
    for video in page.all("video"):
        assert (tmp_path / "out" / "export" / video["src"].replace("%20", " ")).exists()


def test_every_event_has_a_picture_of_itself(tmp_path: Path) -> None:
    clips = write_sample_run(tmp_path, clips=2)
    assert main([str(tmp_path / "out"), "--format", "html"]) == 0
    export = tmp_path / "out" / "export"
    page = Page((export / "index.html").read_text())
    pictures = [span["style"] for span in page.all("span") if span.get("class") == "picture"]
    assert len(pictures) == sum(len(clip.events) for clip in clips)
    for video in page.all("video"):
        assert Image.open(export / video["poster"]).size == (600, 360)
    index = read_index(Store(), str(tmp_path / "out"))
    clip_of = {video_id(str(tmp_path / "videos" / f"clip {number}.mp4")): clip for number, clip in enumerate(clips)}
    for row in index.events.to_pylist():
        assert f"background-image: url(thumbnails/{row['event_id']}.jpg)" in pictures
        pixels = np.asarray(Image.open(export / "thumbnails" / f"{row['event_id']}.jpg"))
        assert pixels.shape == (108, 180, 3)
        into = min(row["end_us"] - row["start_us"], 2 * SECOND) // 2  # the file has 8 frames a second
        frame = clip_of[row["video_id"]].frame((row["start_us"] + into) * 8 // SECOND / 8)
        expected = np.asarray(Image.fromarray(frame).resize((180, 108), Image.Resampling.BICUBIC))
        assert np.abs(pixels - expected.astype(int)).mean() < 6


def test_a_source_that_is_gone_has_no_pictures(tmp_path: Path) -> None:
    write_sample_run(tmp_path, clips=1)
    (video,) = (tmp_path / "videos").iterdir()
    video.write_bytes(b"#EXTM3U\nhttp://127.0.0.1:9/secret.ts\n")
    assert main([str(tmp_path / "out"), "--format", "html"]) == 0
    video.unlink()
    assert main([str(tmp_path / "out"), "--format", "html"]) == 0
    page = Page((tmp_path / "out" / "export" / "index.html").read_text())
    assert not [element for element in page.elements if element[1].get("class") == "picture" or "poster" in element[1]]
    assert not (tmp_path / "out" / "export" / "thumbnails").exists()


def test_webvtt_has_one_cue_for_each_event(evil: Path) -> None:
    assert main([str(evil), "--format", "vtt"]) == 0
    (text,) = (text for path in evil.glob("export/*.vtt") if "\ne1\n" in (text := path.read_text()))
    header, *cues = text.split("\n\n")
    assert header == "WEBVTT"
    escaped = '&lt;/script&gt;&lt;img src=x onerror="document.title=\'owned\'"&gt;&amp; --&gt; "it\'s" NOTE &lt;b&gt;'
    assert cues[0] == f"e1\n00:00:01.000 --> 00:00:04.001\n[{escaped}] {escaped}"
    assert cues[1] == "e2\n00:00:03.000 --> 00:00:09.000\nplain\n"


def test_a_media_library_reads_the_webvtt(tmp_path: Path) -> None:
    """FFmpeg's demuxer finds the cues, their times and their text."""
    av = pytest.importorskip("av")
    path = tmp_path / "cues.vtt"
    path.write_text(webvtt([("a", 1_000_000, 2_500_000, "one & two"), ("b", 3_600_000_000, 3_601_000_000, "x <y>")]))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux() if packet.size]
        times = [
            (float(packet.pts * packet.time_base), float(packet.duration * packet.time_base)) for packet in packets
        ]
        assert times == [(1.0, 1.5), (3600.0, 1.0)]
        assert [bytes(packet) for packet in packets] == [b"one &amp; two", b"x &lt;y&gt;"]


def test_json_says_what_the_tables_say(evil: Path, tmp_path: Path) -> None:
    assert main([str(evil), "--format", "json", "--to", str(tmp_path / "there")]) == 0
    contents = {path.name: json.loads(path.read_text()) for path in (tmp_path / "there").iterdir()}
    assert {content["filename"] for content in contents.values()} >= {"empty.mp4"}
    full = next(content for content in contents.values() if content["events"])
    rows = read_index(Store(), str(evil)).events.to_pylist()
    assert [row | {"link": None} for row in full["events"]] == [row | {"link": None} for row in rows]
    assert full["events"][1]["link"].endswith(".mp4#t=3")
    assert [chapter["title"] for chapter in full["chapters"]] == ["plain"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+\.json", name) for name in contents)


def test_an_index_that_is_not_finished_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no finished index" in capsys.readouterr().err


def test_an_index_in_a_bucket_is_exported_and_searched_there(
    s3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sample_run(tmp_path, clips=1)
    store = Store(StoreOptions(endpoint_url=s3.endpoint_url))
    output = f"s3://{s3.new_bucket()}/index"
    for path in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        store.put(join(output, str(path.relative_to(tmp_path / "out"))), path.read_bytes())
    assert main([output, "--endpoint-url", s3.endpoint_url]) == 0
    names = {asset.uri.rsplit("/", 1)[-1] for asset in store.list(join(output, "export"))}
    rows = read_index(store, output).events.to_pylist()
    assert {"index.html"} | {f"{row['event_id']}.jpg" for row in rows} <= names
    capsys.readouterr()
    assert search([output, rows[0]["description"], "--endpoint-url", s3.endpoint_url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["description"] == rows[0]["description"]


def test_what_a_player_opens_is_at_its_own_time_where_the_video_begins_late(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "/films/late.mp4"
    write_run(tmp_path / "out", [(uri, 10 * SECOND, [event(1, uri, (2, 4), "a lamp")])], late_us=5 * SECOND)
    assert main([str(tmp_path / "out"), "--format", "vtt", "--format", "json", "--format", "html"]) == 0
    cues = [path.read_text() for path in (tmp_path / "out" / "export").glob("*.vtt")]
    assert all("\n00:00:07.000 --> 00:00:09.000\n" in text for text in cues)
    (content,) = (json.loads(path.read_text()) for path in (tmp_path / "out" / "export").glob("*.json"))
    assert content["start_offset_us"] == 5 * SECOND
    assert [(row["start_us"], row["link"][-4:]) for row in content["events"]] == [(2 * SECOND, "#t=7")]
    (html,) = (path.read_text() for path in (tmp_path / "out" / "export").glob("*.html"))
    assert {button["data-start"] for button in Page(html).all("button") if "data-start" in button} == {"7.0"}
    capsys.readouterr()
    assert search([str(tmp_path / "out"), "lamp"]) == 0
    assert "#t=7" in capsys.readouterr().out
