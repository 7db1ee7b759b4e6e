"""One model of an evaluation: its log-probs of pairs and of answers, and the answers that it samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ScoringError
from ..generation.local import UNCUT, Answer, LocalModel
from ..models.description import Description
from ..models.loading import Loading, load_scorer
from ..models.packing import TokenSequence
from ..reasons import Unusable
from ..sources.preferences import Pair, PairColumns
from ..tokens.encoder import ResponseEncoder
from ..tokens.encoding import EncodedResponse, encode_responses
from ..tokens.pairs import EncodedPairs, encode_pairs
from .figures import Numbers
from .settings import EvaluateSettings

if TYPE_CHECKING:
    import datasets


class Scored(NamedTuple):
    """Sums of a model's log-probs and numbers of tokens, ``(N, 2)`` of pairs, ``(N,)`` of answers."""

    sums: Numbers
    tokens: Numbers

    @property
    def means(self) -> Numbers:
        """Per token."""
        return self.sums / self.tokens


class Asked(NamedTuple):
    """A prompt and the answer to it."""

    pair: Pair
    answer: Answer


class _Sampled(NamedTuple):
    """A sampled answer after its prompt, to be scored."""

    input_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]

    @classmethod
    def of(cls, answer: Answer) -> "_Sampled":
        ids = np.array([*answer.prompt_ids, *answer.token_ids], dtype=np.int64)
        return cls(ids, np.arange(len(answer.prompt_ids), ids.size))


@dataclass
class EvaluatedModel:
    """A model without its weights, which are loaded for each of the methods and dropped again.

    Attributes:
        description: What it is.
        encoder: Its tokenizer.
        settings: How it is evaluated.
        self_check: The largest difference so far between a log-prob and that of a plain forward, in nats.
    """

    description: Description
    encoder: ResponseEncoder
    settings: EvaluateSettings
    self_check: float = 0.0

    @property
    def max_length(self) -> int:
        """Most tokens of prompt and response of a pair."""
        context = self.description.max_context
        return min(self.settings.max_length, context or self.settings.max_length)

    def logps(self, sequences: Sequence[TokenSequence]) -> list[npt.NDArray[np.float32]]:
        """In nats, for every scored token.

        Raises:
            ScoringError: If one is no number, or depends on the batch in spite of everything.
        """
        how = Loading(self.settings.dtype, self.settings.device, self.max_length)
        found, off = load_scorer(self.description.checkpoint, how).checked_logps(sequences)
        if sequences and math.isnan(off):
            raise ScoringError(
                f"{self.description.checkpoint.facts.name}: a log-probability is not a finite number. Use "
                "`dtype=float32`; if it is used already, the weights are broken."
            )
        self.self_check = max(self.self_check, off)
        return found

    def answers(self, pairs: Sequence[Pair]) -> list[Answer]:
        """To the prompts of pairs, sampled batch by batch."""
        settings = self.settings
        model = LocalModel(
            self.description.checkpoint,
            self.encoder,
            Loading(settings.dtype, settings.device),
            max_new_tokens=settings.max_new_tokens,
            top_p=1.0,
            max_context=self.description.max_context,
        )
        prompts = [model.prompt(pair.prompt, pair.context) for pair in pairs]
        found = []
        for lo in range(0, len(prompts), settings.batch_size):
            batch = prompts[lo : lo + settings.batch_size]
            found += model.generate(batch, settings.temperature, settings.seed + lo)
        return found

    def score_sampled(self, asked: Sequence[Asked]) -> Scored:
        """Of the very tokens that were sampled, by this model or by one with its vocabulary."""
        logps = self.logps([_Sampled.of(answer) for _, answer in asked])
        return Scored(
            np.array([values.sum(dtype=np.float64) for values in logps]),
            np.array([values.size for values in logps], dtype=np.float64),
        )

    def score(self, asked: Sequence[Asked]) -> Scored:
        """Of answers as texts, the end of the turn included where it was sampled; 0 where nothing was."""
        encoded = self.encoded(asked)
        found = iter(self.logps([one for one in encoded if one is not None]))
        sums, tokens = [], []
        for one, (_, answer) in zip(encoded, asked, strict=True):
            logps = np.zeros(0) if one is None else next(found)
            if one is not None and one.ended and not answer.ended:
                logps = logps[:-1]
            sums.append(logps.sum(dtype=np.float64))
            tokens.append(logps.size)
        return Scored(np.array(sums), np.array(tokens, dtype=np.float64))

    def encoded(self, asked: Sequence[Asked]) -> list[EncodedResponse | None]:
        """The answers as tokens of this model; None for those without any."""
        found: list[EncodedResponse | None] = []
        for pair, answer in asked:
            chat = self.encoder.render(pair.prompt, answer.text, pair.context)
            longest = self.description.max_context or UNCUT
            one = chat if isinstance(chat, Unusable) else encode_responses(self.encoder, [chat], longest)[0]
            found.append(None if isinstance(one, Unusable) else one)
        return found

    def score_pairs(self, rows: "datasets.Dataset", columns: PairColumns) -> tuple[Scored, EncodedPairs]:
        """Of the rows that can be used, and what became of all of them."""
        encoded = encode_pairs(rows, columns, self.encoder, self.max_length, 0, len(rows))
        logps = self.logps([side for pair in encoded.pairs for side in pair])
        sums = np.array([values.sum(dtype=np.float64) for values in logps]).reshape(-1, 2)
        tokens = np.array([values.size for values in logps], dtype=np.float64).reshape(-1, 2)
        return Scored(sums, tokens), encoded
