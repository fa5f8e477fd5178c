"""What became of the inputs since an output was begun with them: it keeps those it has, and says which it leaves."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.books import Books, FrozenSurvey
from pipeline.listing import Entry
from pipeline.progress import some_of


@dataclass(frozen=True, slots=True)
class Changes:
    """Uris of inputs. All empty: they are as they were."""

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()  # there is another version by now
    vanished: tuple[str, ...] = ()
    unknown: str = ""  # why the inputs could not be listed

    def __str__(self) -> str:
        """A line for each kind, and how to take them in; "" where nothing changed."""
        lines = [f"the inputs cannot be compared with those of this output: {self.unknown}"] if self.unknown else []
        for uris, what in (
            (self.new, "are new since this output was begun, and ignored"),
            (self.changed, "are another version by now, which is ignored"),
            (self.vanished, "are no longer there; the rows they have are kept"),
        ):
            if uris:
                lines.append(f"{len(uris):,} inputs {what}: {some_of(uris)}")
        if self.new or self.changed:
            lines.append("To take them in, run the same command with another OUTPUT.")
        return "\n".join(lines)


def changes_since(books: Books, survey: FrozenSurvey, listed: Callable[[], Iterable[Entry]]) -> Changes:
    """Compares what is `listed` now with the inputs of the frozen survey, by uri and etag."""
    then: dict[str, str] = {}
    for shard in range(survey.shards):
        assets = books.survey_assets(survey, shard)
        then.update(zip(assets["uri"].to_pylist(), assets["etag"].to_pylist(), strict=True))
    new, changed = [], []
    try:
        for entry in listed():
            asset = entry[0] if isinstance(entry, tuple) else entry
            etag = then.pop(asset.uri, None)
            if etag is None:
                new.append(asset.uri)
            elif etag != asset.etag and asset.etag:
                changed.append(asset.uri)
    except ValueError as error:
        return Changes(unknown=str(error))
    return Changes(tuple(dict.fromkeys(new)), tuple(changed), tuple(then))
