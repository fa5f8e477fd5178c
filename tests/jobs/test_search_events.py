"""Events are found by their words: against BM25 written out by hand, and through the command."""

import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from rapidfuzz.distance import Levenshtein

from jobs.event_index import EventIndex, Query, clock, media_link, read_index, search
from jobs.export_events import main as export
from jobs.search_events import main
from pipeline.event_tables import chapters_table, events_table
from pipeline.records import Event
from pipeline.store import Store
from tests.jobs.event_runs import SECOND, video_id, write_run, write_sample_run

MATCH, ZOO = "/films/match 7.mp4", "s3://films/zoo.mp4"


def event(number: int, uri: str, span: tuple[int, int], description: str, label: str = "") -> Event:
    start_us, end_us = (second * SECOND for second in span)
    return Event(f"e{number:04}", video_id(uri), "c", start_us, end_us, label, description, None, (), ())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The index of a match and of a day at the zoo."""
    match = [
        event(1, MATCH, (10, 15), "a goal by the red team", "Goal"),
        event(2, MATCH, (60, 64), "a goal kick", "kick"),
        event(3, MATCH, (70, 90), "spectators"),
    ]
    zoo = [
        event(4, ZOO, (3, 9), "Ein Löwe brüllt:\x1b[31m\nGRRR!"),
        event(5, ZOO, (20, 30), "the goals of a day at the zoo"),
    ]
    write_run(tmp_path / "out", [(MATCH, 100 * SECOND, match), (ZOO, 40 * SECOND, zoo)])
    return tmp_path / "out"


def found(output: Path, **query) -> list[int]:
    return [int(hit.event_id[1:]) for hit in search(read_index(Store(), str(output)), Query(**query))]


def bm25(texts: list[str], words: str) -> dict[int, float]:
    """Okapi BM25 by the book; a term of four letters counts every word that begins with it, and half of every word that
    is one letter off."""

    def likeness(word: str, term: str) -> float:
        if word == term or (len(term) >= 4 and word.startswith(term)):
            return 1.0
        return 0.5 if len(term) >= 4 and Levenshtein.distance(word, term) == 1 else 0.0

    documents = [re.findall(r"[a-z]+", text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores: Counter[int] = Counter()
    for term in set(words.split()):
        counts = [sum(likeness(word, term) for word in document) for document in documents]
        holding = sum(count > 0 for count in counts)
        for number, (count, document) in enumerate(zip(counts, documents, strict=True)):
            if count:
                idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                scores[number] += idf * count * 2.2 / (count + 1.2 * (1 - 0.75 + 0.75 * len(document) / mean))
    return scores


def test_scores_are_those_of_bm25() -> None:
    draw = random.Random(0)
    vocabulary = ["red", "redder", "circle", "circles", "cirle", "a", "stays", "left", "star", "start", "stars"]
    for _ in range(8):
        texts = [" ".join(draw.choices(vocabulary, k=draw.randint(1, 9))) for _ in range(30)]
        words = " ".join(draw.choices([*vocabulary, "zebra"], k=draw.randint(1, 3)))
        events = events_table(event(number, MATCH, (0, 1), text) for number, text in enumerate(texts))
        videos = {
            "video_id": [video_id(MATCH)],
            "source_uri": [MATCH],
            "filename": ["m"],
            "duration_us": [1],
            "start_offset_us": [0],
        }
        index = EventIndex(pa.table(videos), events, chapters_table([]), pa.table({}), "")
        hits = search(index, Query(words, limit=100))
        expected = bm25(texts, words)
        assert {int(hit.event_id[1:]): hit.score for hit in hits} == pytest.approx(expected)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_the_best_match_comes_first(output: Path) -> None:
    assert found(output, words="goal kick") == [2, 1, 5]
    assert found(output, words="zoo") == [5]
    assert found(output, words="GOAL!") == [1, 2, 5]  # the first has it as its label too, the last only in "goals"
    assert found(output, words="lowe brullt") == [4]
    assert found(output, words="zebra") == []
    assert found(output, words="spectatois") == [3]  # one letter off
    assert found(output, words="spectatoiz") == []
    assert found(output, words="the gaol") == found(output, words="the")
    assert found(output, words="'; drop table events; --") == []


def test_filters_narrow_what_is_found(output: Path) -> None:
    assert found(output, words="goal", video="match 7") == [1, 2]
    assert found(output, words="goal", video=video_id(ZOO)) == [5]
    assert found(output, words="goal", label="goal") == [1]
    assert found(output, words="goal", after_us=15 * SECOND) == [2, 5]
    assert found(output, words="goal", before_us=20 * SECOND) == [1]
    assert found(output, words="goal", limit=1) == [1]


def test_without_words_events_come_in_order_of_video_and_time(output: Path) -> None:
    assert found(output) == [1, 2, 3, 4, 5]
    assert found(output, after_us=12 * SECOND, before_us=65 * SECOND) == [1, 2, 5]


def test_the_command_prints_file_times_words_and_a_link(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(output), "red goal", "--limit", "1"]) == 0
    score, rest = capsys.readouterr().out.strip().split(maxsplit=1)
    assert float(score) > 0
    assert rest.split("\n") == [
        "match 7.mp4  0:10.0 - 0:15.0  [Goal] a goal by the red team",
        "        file:///films/match%207.mp4#t=10",
    ]
    assert main([str(output), "red goal", "--json", "--after", "0:12"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert (hits[0]["start_us"], hits[0]["links"]) == (10 * SECOND, ["file:///films/match%207.mp4#t=10"])


def test_where_there_is_a_page_a_link_opens_the_event_on_it(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export([str(output), "--format", "html"]) == 0
    capsys.readouterr()
    assert main([str(output), "kick"]) == 0
    link = capsys.readouterr().out.splitlines()[-1].strip()
    path, anchor = link.removeprefix("file://").split("#")
    assert f'id="{anchor}"' in Path(path).read_text()


def test_a_description_cannot_steer_the_terminal(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(output), "brüllt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_a_search_that_cannot_be_run_says_why(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(output), "zebra"]) == 1
    assert capsys.readouterr().out == "nothing found\n"
    for flags, word in (["--after", "soon"], "soon"), (["--limit", "0"], "0"):
        assert main([str(output), "goal", *flags]) == 2
        assert word in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "goal"]) == 2
    assert "holds no finished index" in capsys.readouterr().err


def test_times_are_rounded_outwards() -> None:
    assert (clock(9_990_000), clock(9_910_000, round_up=True)) == ("0:09.9", "0:10.0")
    assert clock(3_725_400_000) == "1:02:05.4"
    assert media_link("/a b/#1.mp4", 3_599_999_999) == "file:///a%20b/%231.mp4#t=3599.9"
    assert media_link("s3://bucket/a b.mp4", 0) == "s3://bucket/a%20b.mp4#t=0"
    assert media_link("s3://b/a", 1_234_567_890_000) == "s3://b/a#t=1234567.8"


def test_every_event_of_sample_videos_is_found_by_its_own_words(tmp_path: Path) -> None:
    clips = write_sample_run(tmp_path, clips=3)
    index = read_index(Store(), str(tmp_path / "out"))
    assert len(index.events) == sum(len(clip.events) for clip in clips) > 10
    for number, clip in enumerate(clips):
        for truth in clip.events:
            hits = search(index, Query(truth.description, video=f"clip {number}", limit=3))
            starts = [hit.start_us / SECOND for hit in hits if hit.description == truth.description]
            assert any(abs(start - truth.start_seconds) <= 1 for start in starts), truth
