"""The index of events as a job left it: its tables out of OUTPUT, and search in them with DuckDB. No server."""

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.event_tables import CHAPTERS, EVENTS
from pipeline.store import Store, join

VIDEO_COLUMNS = (
    *("video_id", "source_uri", "filename", "status", "error_code", "error_message", "duration_us", "start_offset_us"),
)
_GAP_COLUMNS = ("video_id", "start_us", "end_us", "error_code", "error_message")
_WINDOW_COLUMNS = (*_GAP_COLUMNS, "window_id", "status", "flags", "answer")
LOOSE_LETTERS = 4  # a word of a query as long as this also finds longer words that begin with it, and misread ones
MISREAD_WEIGHT = 0.5  # of a word that differs by one letter: added, left out, or another
_WORDS = r"regexp_extract_all(strip_accents(lower({text})), '[\p{{L}}\p{{N}}]+')"

# BM25 (Robertson and Zaragoza, 2009) with k1 = 1.2, b = 0.75 and Lucene's idf, which is never negative. A document is
# the description of an event and its label; what the filters leave out still counts for how rare a word is.
_SEARCH = f"""
with documents as (
    select event_id, {_WORDS.format(text="description || ' ' || label")} as words from events
),
asked as (select distinct unnest({_WORDS.format(text="$words")}) as term),
postings as (select event_id, unnest(words) as word from documents),
matches as (
    select term, word, case when starts_with(word, term) then 1.0 else {MISREAD_WEIGHT} end as weight
    from (select distinct word from postings) join asked
    on word = term
    or (length(term) >= {LOOSE_LETTERS} and (starts_with(word, term) or levenshtein(word, term) = 1))
),
counts as (
    select event_id, term, sum(weight)::double as tf from postings join matches using (word) group by event_id, term
),
size as (select count(*) as documents, avg(len(words)) as mean_words from documents),
rarity as (
    select term, ln(1 + (any_value(documents) - count(*) + 0.5) / (count(*) + 0.5)) as idf
    from counts, size group by term
),
scores as (
    select event_id, sum(idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(words) / mean_words))) as score
    from counts join rarity using (term) join documents using (event_id), size group by event_id
)
select score, event_id, video_id, filename, source_uri, start_us, end_us, description, label, start_offset_us
from scores join events using (event_id) join videos using (video_id) where FILTERS
order by score desc, source_uri, start_us, event_id limit $limit
"""
_ALL = """
select 0.0 as score, event_id, video_id, filename, source_uri, start_us, end_us, description, label, start_offset_us
from events join videos using (video_id) where FILTERS
order by source_uri, start_us, event_id limit $limit
"""


@dataclass(frozen=True, slots=True)
class EventIndex:
    """The tables of a finished job: of `videos` VIDEO_COLUMNS, of the next two all columns of their schema.

    The answer to a question about a window is an event as long as the window, its `event_id` the window's. `gaps` are
    the windows of which nothing could be read: video_id, start_us, end_us, error_code, error_message.
    """

    videos: pa.Table
    events: pa.Table
    chapters: pa.Table
    gaps: pa.Table
    question: str  # what each window was asked; "" where events were


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for: any of the words, in events that pass every filter; without words, all of those."""

    words: str = ""
    video: str = ""  # a part of the video's uri, or its id
    label: str = ""
    after_us: int | None = None  # events that still last at this time, on their video's clock
    before_us: int | None = None  # events that begin before it
    limit: int = 10


@dataclass(frozen=True, slots=True)
class Hit:
    score: float
    event_id: str
    video_id: str
    filename: str
    source_uri: str
    start_us: int
    end_us: int
    description: str
    label: str
    start_offset_us: int  # what to add to the times for a player's

    @property
    def link(self) -> str:
        """The source from the event on, at the player's time."""
        return media_link(self.source_uri, self.start_us + self.start_offset_us)


def read_index(store: Store, output: str) -> EventIndex:
    """Raises ValueError where no finished index of events lies in `output`."""
    if not store.exists(join(output, "_SUCCESS")):
        raise ValueError(f"{output} holds no finished index of events: python -m jobs.index_videos writes one")
    windows = _read_table(store, output, "windows", _WINDOW_COLUMNS)
    unread = pc.is_in(windows["status"], pa.array(["failed", "unparseable"]))
    answers = windows.filter(pc.and_not(pc.not_equal(windows["answer"], ""), unread))
    return EventIndex(
        videos=_read_table(store, output, "videos", VIDEO_COLUMNS),
        events=pa.concat_tables([_read_table(store, output, "events", EVENTS.names), _as_events(answers)]),
        chapters=_read_table(store, output, "chapters", CHAPTERS.names),
        gaps=windows.filter(unread).select(list(_GAP_COLUMNS)),
        question=_question(store, output),
    )


def _question(store: Store, output: str) -> str:
    uri = join(output, "_job.json")
    config = json.loads(store.read(uri)).get("config", {}) if store.exists(uri) else {}
    return str(config.get("question", ""))


def _as_events(answers: pa.Table) -> pa.Table:
    """Answers to a question in the shape of EVENTS."""
    rows = [
        {
            "event_id": row["window_id"],
            "video_id": row["video_id"],
            "chapter_id": "",
            "start_us": row["start_us"],
            "end_us": row["end_us"],
            "description": row["answer"],
            "label": "",
            "confidence": None,
            "flags": row["flags"],
            "sources": [],
        }
        for row in answers.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=EVENTS)


def _read_table(store: Store, output: str, name: str, columns: tuple[str, ...] | list[str]) -> pa.Table:
    folder = join(output, name)
    files = sorted(asset.uri for asset in store.list(folder) if asset.uri.endswith(".parquet"))
    if not files:
        raise ValueError(f"{output} holds no table {name}: was it written by python -m jobs.index_videos?")
    tables = [pq.read_table(pa.BufferReader(store.read(file))) for file in files]
    if "start_offset_us" in columns:  # which the version before did not write
        tables = [_with_offset(table) for table in tables]
    return pa.concat_tables([table.select(list(columns)) for table in tables])


def _with_offset(videos: pa.Table) -> pa.Table:
    if "start_offset_us" in videos.column_names:
        return videos
    return videos.append_column("start_offset_us", pa.array([0] * len(videos), pa.int64()))


def search(index: EventIndex, query: Query) -> list[Hit]:
    """The events that match best, at most `limit`; equal scores in order of video and time."""
    values: dict[str, object] = {"limit": query.limit}
    filters = ["true"]
    if query.video:
        filters.append("(video_id = $video or contains(source_uri, $video))")
        values["video"] = query.video
    if query.label:
        filters.append("lower(label) = lower($label)")
        values["label"] = query.label
    if query.after_us is not None:
        filters.append("end_us > $after")
        values["after"] = query.after_us
    if query.before_us is not None:
        filters.append("start_us < $before")
        values["before"] = query.before_us
    statement = _ALL
    if query.words.strip():
        statement = _SEARCH
        values["words"] = query.words
    with duckdb.connect(config={"enable_external_access": False, "threads": 1}) as database:
        database.register("events", index.events)
        database.register("videos", index.videos)
        rows = database.execute(statement.replace("FILTERS", " and ".join(filters)), values).fetchall()
    return [Hit(*row) for row in rows]


def clock(time_us: int, *, round_up: bool = False) -> str:
    """m:ss.t or h:mm:ss.t to a tenth of a second: rounded down, or up for an end, so that nothing is cut off."""
    tenths = -(-time_us // 100_000) if round_up else time_us // 100_000
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes:02}:{tenths / 10:04.1f}" if hours else f"{minutes}:{tenths / 10:04.1f}"
    return f"{hours}:{text}" if hours else text


def media_url(uri: str) -> str:
    """The source as a URL that a player opens; an object of a bucket may need another host and a signature."""
    if "://" not in uri:
        return Path(uri).as_uri()
    scheme, rest = uri.split("://", 1)
    return f"{scheme}://{quote(rest)}"


def media_link(uri: str, start_us: int) -> str:
    """The source from a time on, to a tenth of a second (a media fragment: https://www.w3.org/TR/media-frags/)."""
    return f"{media_url(uri)}#t={f'{start_us // 100_000 / 10:.1f}'.removesuffix('.0')}"
