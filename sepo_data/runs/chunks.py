"""Score and write the pending chunks of a run.

While a chunk is scored, the previous one is written and the next one tokenised. If memory
cannot hold both models, they run one after the other: the oracle's log-probs of all
chunks are kept next to the chunks until the reference has scored them, too.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from ..errors import OutputError
from ..models.loading import Role, Scorer, load_pair, scorers
from ..models.scoring import Check, Scores, SideLogps, role_logps, score_rows, scored_sides
from ..schema import Sides, validate
from ..tokens.pairs import EncodedPairs, encode_pairs
from .folder import ChunkNotes, Run, is_done, is_finished, read_chunk, write_chunk
from .inputs import Job
from .rounding import PAIRS as PRECISION_PAIRS
from .rounding import compare, scores_in_float32
from .tables import annotated_table, list_array

if TYPE_CHECKING:
    from .progress import Progress


log = logging.getLogger("sepo")

Chunk = tuple[int, int]  # half-open range of source rows
T = TypeVar("T")
ORACLE_PART = "oracle"


@dataclass(frozen=True)
class Work:
    """State shared by the steps below.

    Attributes:
        job: What is scored, with what.
        run: Where it goes.
        schema: Of the dataset.
        own: This process's chunks, including finished ones.
        progress: Told how far it is.
        stop: Asked after every chunk.
        checks: Checks of the chunks that were compared with plain forward passes.
    """

    job: Job
    run: Run
    schema: pa.Schema
    own: Sequence[Chunk]
    progress: "Progress"
    stop: Callable[[], bool]
    checks: dict[Chunk, Check] = field(default_factory=dict)

    def check(self, chunk: Chunk, pending: Sequence[Chunk]) -> Check | None:
        """A comparison with plain forward passes, for the first and the last chunk."""
        if chunk not in (pending[0], pending[-1]):
            return None
        return self.checks.setdefault(chunk, Check(first=chunk == pending[0]))

    def each(
        self,
        pending: Sequence[Chunk],
        score: Callable[[Chunk, EncodedPairs], T],
        finish: Callable[[Chunk, EncodedPairs, T], None],
    ) -> bool:
        """Score chunks here, tokenise and finish them in threads; False if stopped before the last."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            following = pool.submit(self.encode, pending[0])
            written: Future[None] | None = None
            for done, chunk in enumerate(pending, start=1):
                encoded = following.result()
                if done < len(pending):
                    following = pool.submit(self.encode, pending[done])
                scored = score(chunk, encoded)
                if written is not None:
                    written.result()
                written = pool.submit(finish, chunk, encoded, scored)
                if done < len(pending) and self.stop():
                    break
            assert written is not None
            written.result()
        return done == len(pending)

    def start(self, pending: Sequence[Chunk], half_done: Sequence[Chunk] = ()) -> None:
        """Report the total work."""
        rows, left, half = (sum(hi - lo for lo, hi in chunks) for chunks in (self.own, pending, half_done))
        self.progress.start(rows, rows - left + half // 2)

    def encode(self, chunk: Chunk) -> EncodedPairs:
        """Read and tokenise the rows of a chunk."""
        job = self.job
        reasoning = job.settings.reasoning
        return encode_pairs(job.source.rows, job.columns, job.encoder, job.max_length, *chunk, reasoning)

    def on_share(self, chunk: Chunk, encoded: EncodedPairs, share: float = 1.0) -> Callable[[float], None]:
        """Reports progress within a part of a chunk's work."""
        rows = share * (chunk[1] - chunk[0])
        if not encoded.pairs:
            self.progress.advance(rows)
        return lambda done: self.progress.advance(rows * done)


def annotate_chunks(work: Work, pending: Sequence[Chunk]) -> bool:
    """Score, select and write the pending chunks; False if stopped before the last one.

    Raises:
        SepoError: One of its children, see `errors`.
    """
    job, how, in_turn = work.job, work.job.loading, work.job.in_turn
    # rows of the first chunk, in every process: the manifest must not depend on who did what
    checked = work.encode(pending[0]).pairs[:PRECISION_PAIRS] if pending[0][0] == 0 and how.rounds else []
    exact = None
    if checked and (in_turn or how.dtype != "float32"):
        exact = scores_in_float32(job, checked, in_turn=in_turn)
    if in_turn:
        return _oracle_then_ref(work, pending, partial(_finish, work, exact))
    models = load_pair(job.facts, how)
    work.start(pending)
    if checked and how.dtype == "float32":  # TF32 can be switched off
        exact = score_rows(models.exact(), checked, job.settings.batch_tokens)

    def score(chunk: Chunk, encoded: EncodedPairs) -> Scores:
        on_share, check = work.on_share(chunk, encoded), work.check(chunk, pending)
        return score_rows(models, encoded.pairs, job.settings.batch_tokens, on_share, check)

    return work.each(pending, score, partial(_finish, work, exact))


def _finish(work: Work, exact: Scores | None, chunk: Chunk, encoded: EncodedPairs, scored: Scores) -> None:
    """Select, check and write."""
    table = annotated_table(encoded, scored, work.schema, work.job.settings.selection)
    validate(table)
    notes: ChunkNotes = {"dropped": encoded.dropped, "counts": encoded.counts}
    if exact is not None and chunk[0] == 0:
        notes["precision"] = compare(encoded.pairs, exact, scored, work.job.settings.selection).as_dict()
    ends = chunk[0] == 0 or chunk[1] == work.run.rows  # in every process: the manifest must not depend on it
    if ends and (check := work.checks.get(chunk)):
        notes["self_check"] = check.largest
    write_chunk(work.run, *chunk, table, notes)


def _oracle_then_ref(
    work: Work, pending: Sequence[Chunk], finish: Callable[[Chunk, EncodedPairs, Scores], None]
) -> bool:
    """Run both models over all pending chunks, one after the other; False if stopped before the end."""
    run, batch_tokens = work.run, work.job.settings.batch_tokens
    by_oracle = [chunk for chunk in pending if not is_done(run, *chunk, part=ORACLE_PART)]
    work.start(pending, half_done=[chunk for chunk in pending if chunk not in by_oracle])

    def keep(chunk: Chunk, encoded: EncodedPairs, logps: SideLogps) -> None:
        columns = {side: list_array(of_side, pa.float32()) for side, of_side in logps.items()}
        check = work.checks.get(chunk)
        notes: ChunkNotes = {} if check is None else {"self_check": check.largest}
        write_chunk(run, *chunk, pa.table(columns), notes, part=ORACLE_PART)

    def finish_with(chunk: Chunk, encoded: EncodedPairs, ref_logps: SideLogps) -> None:
        try:
            kept, notes = read_chunk(run, *chunk, part=ORACLE_PART)
        except OutputError:
            if is_finished(run) or is_done(run, *chunk):  # by another worker, which has cleaned up
                return
            raise
        oracle_logps = Sides.of(lambda side: [row.values.to_numpy() for row in kept[side]])
        if check := work.checks.get(chunk):  # the oracle may have scored it in another process
            check.largest = max(check.largest, notes.get("self_check", 0.0))
        finish(chunk, encoded, scored_sides(oracle_logps, ref_logps))
        run.chunk(*chunk, part=ORACLE_PART).unlink(missing_ok=True)

    steps: dict[Role, tuple[Sequence[Chunk], Callable[[Chunk, EncodedPairs, SideLogps], None]]] = {
        "oracle": (by_oracle, keep),
        "ref": (pending, finish_with),
    }
    for role, scorer in scorers(work.job.facts, work.job.loading, in_turn=True):
        chunks, finish_role = steps[role]

        def score(
            chunk: Chunk, encoded: EncodedPairs, role: Role = role, scorer: Scorer = scorer
        ) -> SideLogps:
            on_share = work.on_share(chunk, encoded, share=0.5)
            check = work.check(chunk, steps[role][0])
            return role_logps(role, scorer, encoded.pairs, batch_tokens, on_share, check)

        if chunks and not work.each(chunks, score, finish_role):
            return False
        if chunks and role == "oracle" and work.stop():
            return False
        del scorer, score  # before the next one is loaded
    return True
