"""What travels between the stages of the reading pass, as Arrow rows: Unit -> DecodedUnit -> AnsweredUnit -> Receipt.

Pixels are the heavy part and travel as one uint8 column of constant rank, which Ray passes without copying; the small
rest of a row is pickled. Rows stay below `MAX_ROW_BYTES`, so that what is in flight is bounded by counting rows.
"""

import pickle
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from model.request import Completion, Prompt
from pipeline.records import Failure, PageFacts, Unit, WindowFacts

Row = dict[str, Any]
MAX_ROW_BYTES = 32 * 2**20


def unit_to_row(unit: Unit) -> Row:
    return {"unit_id": unit.unit_id} | asdict(unit)


def unit_from_row(row: Row) -> Unit:
    return Unit(**{field.name: row[field.name] for field in fields(Unit)})


@dataclass(frozen=True, slots=True)
class DecodedPiece:
    """A rendered page with one prompt for each of its tiles (a blank page has none), or a decoded window of a video."""

    facts: PageFacts | WindowFacts
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class DecodedUnit:
    unit: Unit
    pieces: tuple[DecodedPiece, ...]
    failures: tuple[tuple[int, Failure], ...]  # number of a piece and why it could not be decoded

    def to_row(self) -> Row:
        """unit_id, `patches` uint8 [P, C] of all prompts one after the other, and the rest as bytes."""
        prompts = [prompt for piece in self.pieces for prompt in piece.prompts]
        patches = [prompt.patches_PC for prompt in prompts]
        light = tuple(
            replace(piece, prompts=tuple(replace(prompt, patches_PC=prompt.patches_PC[:0]) for prompt in piece.prompts))
            for piece in self.pieces
        )
        return {
            "unit_id": self.unit.unit_id,
            "patches": np.concatenate(patches) if patches else np.empty((0, 1), dtype=np.uint8),
            "rest": pickle.dumps(replace(self, pieces=light)),
        }

    @classmethod
    def from_row(cls, row: Row) -> "DecodedUnit":
        """The patches of the prompts are views of the row's."""
        light: DecodedUnit = pickle.loads(row["rest"])
        patches_PC, at = row["patches"], 0
        pieces = []
        for piece in light.pieces:
            prompts = []
            for prompt in piece.prompts:
                count = int(prompt.grids_G3.prod(axis=1).sum())
                prompts.append(replace(prompt, patches_PC=patches_PC[at : at + count]))
                at += count
            pieces.append(replace(piece, prompts=tuple(prompts)))
        assert at == len(patches_PC) or not at, f"{len(patches_PC)} patches in the row, {at} in its prompts"
        return replace(light, pieces=tuple(pieces))


@dataclass(frozen=True, slots=True)
class AnsweredPiece:
    facts: PageFacts | WindowFacts
    answers: tuple[Completion | Failure, ...]  # one for each prompt


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """How busy the engine of a replica has been since it started."""

    replica_id: str
    steps: int
    occupancy: float  # mean share of its batch that was in use, over the steps
    seconds: float  # spent in steps


@dataclass(frozen=True, slots=True)
class AnsweredUnit:
    unit: Unit
    pieces: tuple[AnsweredPiece, ...]
    failures: tuple[tuple[int, Failure], ...]
    load: ReplicaLoad

    def to_row(self) -> Row:
        return {"unit_id": self.unit.unit_id, "rest": pickle.dumps(self)}

    @classmethod
    def from_row(cls, row: Row) -> "AnsweredUnit":
        return pickle.loads(row["rest"])


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one part brought: how the driver follows the pass without reading the rows."""

    asset_ids: tuple[str, ...]  # one for each unit
    pieces: int
    found: int  # blocks or events
    media_us: int  # time that only these windows show; 0 for pages
    tokens_out: int
    failed: tuple[str, ...]  # error codes, one for each failed piece
    loads: tuple[ReplicaLoad, ...]

    def to_row(self) -> Row:
        return {"rest": pickle.dumps(self)}

    @classmethod
    def from_row(cls, row: Row) -> "Receipt":
        return pickle.loads(row["rest"])
