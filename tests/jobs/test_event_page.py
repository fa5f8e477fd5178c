"""The page of an index as a strict HTML parser reads it, with every text hostile; and at the times of a player."""

import base64
import json
import re
from fractions import Fraction
from io import StringIO
from pathlib import Path

import av
import html5lib
import numpy as np
import pytest
import webvtt
from PIL import Image

from jobs.event_page import VideoEvents, event_page
from jobs.export_events import main
from jobs.search_events import main as search
from pipeline.videos import inspect_video
from tests.jobs.event_runs import SECOND, video_id, window, write_run
from tests.jobs.test_export_events import EVIL, event
from tests.pipeline.video_files import options

NASTY = EVIL + " \x01\x1b[2J\ufffe\x85\U0001ffff \u202egpj\u2066 ' \" \u05d0 {{ 7 * 7 }} </textarea></title>"
GOOD, BAD, PART = "/films/good.mp4", "/films/bad.mp4", "/films/part.mp4"


def parsed(output: Path, *flags: str):
    """The tree of the exported page; a parse error of the HTML standard raises."""
    assert main([str(output), "--format", "html", *flags]) == 0
    content = (output / "export" / "index.html").read_bytes()
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(content)


def text(element) -> str:
    return " ".join("".join(element.itertext()).split())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """One video that was read, one of which a window was not, and one that could not be opened."""
    good = [event(1, GOOD, (1, 4), "a lamp", "light"), event(2, GOOD, (70, 90), "a door")]
    write_run(
        tmp_path / "out",
        [(GOOD, 100 * SECOND, good), (BAD, 0, []), (PART, 60 * SECOND, [event(3, PART, (2, 5), "rain")])],
        windows=[
            window(PART, 2, (20, 40), status="failed", error_code="decoder_error", error_message="bad packet"),
            window(PART, 3, (40, 60), status="unparseable", error_code="unparseable", error_message="no JSON"),
        ],
        failures={BAD: ("corrupt", "no moov atom: copy it again")},
    )
    return tmp_path / "out"


def test_every_text_may_be_hostile_and_the_page_stays_valid(tmp_path: Path) -> None:
    uri, bad = (f"/films/{name}{NASTY.replace('/', '|')}.mp4" for name in "ab")
    write_run(
        tmp_path / "out",
        [(uri, 10 * SECOND, [event(1, uri, (1, 4), NASTY, NASTY)]), (bad, 0, [])],
        windows=[window(uri, 1, (5, 9), status="failed", error_code=NASTY, error_message=NASTY)],
        failures={bad: (NASTY, NASTY)},
        question=NASTY,
    )
    page = parsed(tmp_path / "out", "--title", NASTY)
    assert len(page.findall(".//script")) == 1
    assert not page.findall(".//img")
    attributes = [name for element in page.iter() if isinstance(element.tag, str) for name in element.attrib]
    assert not [name for name in attributes if name.startswith("on")]
    isolated = {text(element) for kind in ("bdi", "q") for element in page.iter(kind)}
    assert sum("{{ 7 * 7 }}" in words and "\ufffdgpj" in words for words in isolated) == 6
    everything = "".join(page.itertext()) + "".join(
        value for element in page.iter() for value in element.attrib.values()
    )
    assert not re.search("[\u202e\u2066\x01\x1b\x85\ufffe]", everything)


def test_a_failed_input_shows_its_reason_and_no_player(output: Path) -> None:
    articles = {article.get("id"): article for article in parsed(output).iter("article")}
    bad = articles[video_id(BAD)]
    assert "Could not be read: no moov atom: copy it again (corrupt)" in text(bad)
    assert [bad.find(f".//{tag}") for tag in ("video", "button", "time")] == [None] * 3
    part = articles[video_id(PART)]
    assert [text(gap) for gap in part.findall(".//li[@class='reason']")] == [
        "0:20.0 – 0:40.0 could not be read: bad packet (decoder_error)",
        "0:40.0 – 1:00.0 could not be read: no JSON (unparseable)",
    ]
    gaps = part.findall(".//span[@class='bar gap']")
    assert [gap.get("style") for gap in gaps] == ["left: 33.333%; width: 33.333%", "left: 66.667%; width: 33.333%"]
    assert part.find(".//video") is not None


def test_names_are_headings_in_order_and_paths_are_not(output: Path) -> None:
    page = parsed(output)
    headings = [(element.tag, text(element)) for element in page.iter() if element.tag in ("h1", "h2", "h3")]
    assert headings == [
        ("h1", "Events of out"),
        ("h2", "bad.mp4"),
        ("h2", "good.mp4 1:40.0"),
        ("h3", "0:01.0 a door"),
        ("h2", "part.mp4 1:00.0"),
        ("h3", "0:02.0 rain"),
    ]
    assert page.find(".//title").text == "Events of out"


def test_what_a_page_needs_for_keyboards_and_screen_readers(output: Path) -> None:
    page = parsed(output)
    assert page.find(".").get("lang") == "en"
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    (box,) = page.iter("input")
    assert [label.text for label in page.iter("label") if label.get("for") == box.get("id")] == ["Filter"]
    (hits,) = page.iter("output")
    assert (hits.get("aria-live"), text(hits)) == ("polite", "3 videos, 3 events, 1 could not be read")
    for referring in ("aria-labelledby", "aria-describedby", "for", "data-for"):
        assert {element.get(referring) for element in page.iter() if element.get(referring)} <= set(ids)
    for timeline in page.findall(".//div[@class='timeline']"):
        assert timeline.get("aria-hidden") == "true"
        assert {bar.get("tabindex") for bar in timeline.iter("button")} <= {"-1"}
    for moment in page.iter("time"):
        assert re.fullmatch(r"PT\d+\.\d{3}S", moment.get("datetime"))
    clickable = [element for element in page.iter() if element.get("data-start") or element.get("data-for")]
    assert {element.tag for element in clickable} - {"button"} <= {"output"}  # which says how many there are


@pytest.mark.parametrize("background", ["ffffff", "121212"])  # of the light and the dark scheme of browsers
def test_colours_can_be_told_from_the_background(background: str, output: Path) -> None:
    """WCAG 2.2, 1.4.11: parts of graphics have a contrast of at least 3."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    colours = dict(re.findall(r"--(\w+): #([0-9a-f]{6})", parsed(output).find(".//style").text))
    assert set(colours) == {"event", "chapter", "chosen", "gap"}
    for colour in colours.values():
        low, high = sorted([luminance(colour), luminance(background)])
        assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize(
    ("seconds", "labels"),
    [
        (1, ["0:00.0", "0:00.2", "0:00.4", "0:00.6", "0:00.8"]),
        (60, ["0:00", "0:10", "0:20", "0:30", "0:40", "0:50"]),
        (5400, ["0:00", "15:00", "30:00", "45:00", "1:00:00", "1:15:00"]),
        (40 * 86400, ["0:00", *(f"{hours}:00:00" for hours in range(120, 960, 120))]),
    ],
)
def test_the_axis_has_round_times_at_their_places(seconds: int, labels: list[str], tmp_path: Path) -> None:
    write_run(tmp_path / "out", [(GOOD, seconds * SECOND, [])])
    axis = parsed(tmp_path / "out").find(".//div[@class='axis']")
    assert [tick.text for tick in axis] == labels
    places = [float(re.search(r"left: ([\d.]+)%", tick.get("style"))[1]) for tick in axis]
    assert places == pytest.approx(list(np.arange(len(labels)) * places[1]), abs=0.01)


def test_captions_are_the_exported_webvtt(output: Path) -> None:
    track, _ = parsed(output).findall(".//video/track")
    assert (track.get("kind"), track.get("label")) == ("captions", "events")
    embedded = base64.b64decode(track.get("src").removeprefix("data:text/vtt;base64,")).decode()
    assert main([str(output), "--format", "vtt"]) == 0
    (exported,) = output.glob("export/good.mp4-????????????.vtt")
    cues = [
        [(cue.start_in_seconds, cue.end_in_seconds, cue.text) for cue in captions]
        for captions in (webvtt.read(str(exported)), webvtt.from_buffer(StringIO(embedded)))
    ]
    assert cues[0] == cues[1] == [(1, 4, "[light] a lamp"), (70, 90, "a door")]
    assert not list(output.glob("export/bad*.vtt"))


def test_answers_to_a_question_are_on_the_page_and_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [window(GOOD, 1, (0, 20), answer="Two people."), window(GOOD, 2, (15, 40), answer="Nobody <b>here</b>.")]
    failed = window(GOOD, 3, (35, 60), status="failed", error_code="infer_crash", error_message="it died")
    run = {"windows": [*answers, failed], "question": "How many people?"}
    write_run(tmp_path / "out", [(GOOD, 60 * SECOND, [])], late_us=2 * SECOND, **run)
    page = parsed(tmp_path / "out")
    assert "How many people?" in text(page.find(".//header"))
    assert "1 video, 2 answers" in text(page.find(".//output"))
    rows = {row.get("id"): row for row in page.findall(".//button[@class='row']")}
    assert {name: (row.get("data-start"), text(row)) for name, row in rows.items()} == {
        f"{video_id(GOOD)}#1": ("2.0", "0:00.0 – 0:20.0Two people."),
        f"{video_id(GOOD)}#2": ("17.0", "0:15.0 – 0:40.0Nobody <b>here</b>."),
    }
    capsys.readouterr()
    assert search([str(tmp_path / "out"), "nobody", "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)
    assert (hit["description"], hit["start_us"], hit["label"]) == ("Nobody <b>here</b>.", 15 * SECOND, "")
    assert hit["links"][0] == "file:///films/good.mp4#t=17"
    assert hit["links"][1].endswith(f"/export/index.html#{video_id(GOOD)}%232")
    write_run(tmp_path / "events", [(GOOD, 60 * SECOND, [event(1, GOOD, (1, 2), "nobody")])])
    assert search([str(tmp_path / "events"), "nobody", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0].keys() == hit.keys()


def write_late_video(path: Path) -> None:
    """Eight seconds of silence, and from the third on a video whose brightness says its second."""
    with av.open(str(path), "w") as container:
        sound, video = container.add_stream("aac", rate=48_000), container.add_stream("libx264", rate=10)
        video.width, video.height, video.codec_context.time_base = 64, 64, Fraction(1, 10)
        packets = []
        for number in range(375):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 1024 * number, Fraction(1, 48_000)
            packets += sound.encode(frame)
        for number in range(60):
            grey = np.full((64, 64, 3), 40 * (number // 10), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = number + 20, Fraction(1, 10)
            packets += video.encode(frame)
        for packet in sorted(
            packets + sound.encode() + video.encode(), key=lambda packet: packet.dts * packet.time_base
        ):
            container.mux(packet)


def player_seconds(path: Path) -> float:
    """When a player's clock, which begins with the file's first track, shows the first picture."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return float(frame.pts * frame.time_base) - container.start_time / 1e6


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts"])
def test_every_export_of_a_video_that_begins_after_its_sound_is_at_the_players_time(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"late.{suffix}"
    write_late_video(path)
    first = player_seconds(path)
    assert first == pytest.approx(2, abs=0.06)  # the encoder's delay is part of the sound
    with path.open("rb") as file:
        late_us = inspect_video(file, options()).start_offset_us
    write_run(tmp_path / "out", [(str(path), 6 * SECOND, [event(1, str(path), (3, 5), "grey")])], late_us=late_us)
    page, out = parsed(tmp_path / "out"), tmp_path / "out" / "export"
    assert main([str(tmp_path / "out"), "--format", "vtt", "--format", "json"]) == 0
    starts = [float(button.get("data-start")) for button in page.iter("button") if button.get("data-start")]
    assert starts == pytest.approx([3 + first] * 2, abs=1e-3)  # a chapter and an event
    track = base64.b64decode(page.find(".//track").get("src").partition(",")[2]).decode()
    for cues in [webvtt.from_buffer(StringIO(track)), *map(webvtt.read, map(str, out.glob("*.vtt")))]:
        assert [(cue.start_in_seconds, cue.end_in_seconds) for cue in cues] == [(int(3 + first), int(5 + first))]
        assert cues[0].start.startswith(f"00:00:{3 + first:06.3f}"[:11])
    (content,) = (json.loads(file.read_text()) for file in out.glob("*.json"))
    capsys.readouterr()
    assert search([str(tmp_path / "out"), "grey", "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)
    for link in content["events"][0]["link"], hit["links"][0]:
        assert float(link.partition("#t=")[2]) == pytest.approx(3 + first, abs=0.1)
    (picture,) = (out / "thumbnails").iterdir()
    assert np.asarray(Image.open(picture)).mean() == pytest.approx(160, abs=6)  # a second into the event


def test_a_page_of_two_thousand_videos_stays_small_enough_to_open() -> None:
    def video(number: int) -> VideoEvents:
        name = f"{number:032x}"
        row = {"video_id": name, "source_uri": f"/films/{number}.mp4", "filename": f"{number}.mp4", "status": "ok"}
        row |= {"error_code": "", "error_message": "", "duration_us": 100 * SECOND, "start_offset_us": 0}
        words = {"chapter_id": "", "label": "", "description": "a person in a red coat walks past a shop"}
        events = [
            {"event_id": f"{name}{place}", "start_us": 10 * SECOND * place, "end_us": 10 * SECOND * place + 1} | words
            for place in range(2)
        ]
        return VideoEvents(row, events, [], [], f"../{number}.mp4")

    page = event_page(
        "films", [video(number) for number in range(2000)], {f"posters/{number:032x}.jpg" for number in range(2000)}
    )
    assert page.count('class="row"') == 4000
    assert len(page) < 4000 * 1300
    assert page.count(" poster=") == 50  # browsers read all of them at once; a script reads the others
    assert page.count(" data-poster=") == 1950
