"""The main path of `sepo evaluate`: pairs and answers in, figures out; one model in memory at a time."""

import numpy as np
import pyarrow as pa

from ..errors import PreferenceError, SettingsError
from ..models.checkpoints import Trust
from ..models.description import describe_model
from ..sources.preferences import Pair, open_pairs
from ..tokens.encoder import response_encoder, tokenizer_hash
from ..tokens.templates import set_chat_template
from .figures import Accuracy, Evaluation, Sampled, is_degenerate, share_ordered, win_rate
from .scoring import Asked, EvaluatedModel, Scored
from .settings import EvaluateSettings


def evaluate(
    model: str, ref: str, dataset: str, settings: EvaluateSettings, *, oracle: str | None = None
) -> Evaluation:
    """Measure a policy against the reference that it was trained from.

    Args:
        model: The policy, Hub id or folder.
        ref: The reference; it may have another vocabulary.
        dataset: Preference pairs that were not trained on: Hub id, folder or file.
        settings: Everything else.
        oracle: Judges the sampled answers by its log-ratio to the reference; None: they are not judged.

    Raises:
        SepoError: One of its children, see `errors`.
    """
    source, columns = open_pairs(dataset, settings)
    rows = source.rows.select(range(min(settings.limit or len(source.rows), len(source.rows))))
    if settings.by is not None and settings.by not in rows.column_names:
        known = ", ".join(rows.column_names)
        raise SettingsError(f"{source.name}: no column {settings.by}. Correct `by`; the columns are {known}.")
    schema = rows.features.arrow_schema
    texts = pa.schema([schema.field(name) for name in columns.names])
    policy, reference = (_described(name, texts, settings) for name in (model, ref))
    scored, encoded = policy.score_pairs(rows, columns)
    ref_scored, ref_encoded = reference.score_pairs(rows, columns)
    ours, theirs = ([pair.row for pair in one.pairs] for one in (encoded, ref_encoded))
    common = sorted({*ours} & {*theirs})
    if not common:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in encoded.dropped.counts.items())
        raise PreferenceError(f"{source.name}: no pair can be used: {reasons}.")
    scored = _only(scored, ours, common)
    ref_scored = _only(ref_scored, theirs, common)
    groups: dict[str, list[int]] = {}
    if settings.by is not None:
        for i, value in enumerate(rows.select(common)[settings.by][:]):
            groups.setdefault(str(value), []).append(i)
    shift = (scored.means - ref_scored.means).mean(0)
    pairs = [pair.pair for pair in encoded.pairs if pair.row in {*common}]
    judge = None if oracle is None else _described(oracle, texts, settings)
    sampled = _sampled(policy, reference, judge, pairs, settings) if settings.samples else None
    return Evaluation(
        accuracy=_accuracy(scored, ref_scored),
        shift={"chosen": float(shift[0]), "rejected": float(shift[1])},
        dropped=encoded.dropped.counts,
        self_check=max(one.self_check for one in (policy, reference, judge) if one is not None),
        groups={name: _accuracy(scored, ref_scored, places) for name, places in sorted(groups.items())},
        sampled=sampled,
    )


def _described(name: str, texts: pa.Schema, settings: EvaluateSettings) -> EvaluatedModel:
    """A model that encodes the pairs as in training."""
    trust = Trust(settings.allow_pickle, settings.trust_remote_code)
    described = describe_model(name, trust=trust)
    set_chat_template(described.tokenizer, True, texts, name)
    return EvaluatedModel(described, response_encoder(described.tokenizer), settings)


def _only(scored: Scored, rows: list[int], wanted: list[int]) -> Scored:
    places = np.flatnonzero(np.isin(rows, wanted))
    return Scored(scored.sums[places], scored.tokens[places])


def _accuracy(scored: Scored, ref: Scored, places: list[int] | None = None) -> Accuracy:
    some = slice(None) if places is None else places
    log_ratio = (scored.sums - ref.sums)[some]
    return Accuracy(
        pairs=len(log_ratio),
        log_ratio=share_ordered(log_ratio),
        log_prob=share_ordered(scored.means[some]),
        ref_log_prob=share_ordered(ref.means[some]),
    )


def _sampled(
    policy: EvaluatedModel,
    ref: EvaluatedModel,
    oracle: EvaluatedModel | None,
    pairs: list[Pair],
    settings: EvaluateSettings,
) -> Sampled:
    places = np.unique(np.linspace(0, len(pairs) - 1, num=min(settings.samples, len(pairs))).astype(int))
    prompts = [pairs[i] for i in places]
    ours, theirs = (
        [Asked(pair, answer) for pair, answer in zip(prompts, model.answers(prompts), strict=True)]
        for model in (policy, ref)
    )
    same = tokenizer_hash(policy.encoder) == tokenizer_hash(ref.encoder)
    scored = policy.score_sampled(ours)
    ratios = scored.sums - (ref.score_sampled(ours) if same else ref.score(ours)).sums
    wins = None
    if oracle is not None:
        rewards = oracle.score([*ours, *theirs]).sums - ref.score([*ours, *theirs]).sums
        wins = win_rate(rewards[: len(ours)].tolist(), rewards[len(ours) :].tolist())
    return Sampled(
        prompts=len(prompts),
        kl=float(ratios.mean()),
        kl_per_token=float(ratios.sum() / scored.tokens.sum()),
        length=_mean_length(ours),
        ref_length=_mean_length(theirs),
        cut=float(np.mean([not one.answer.ended for one in ours])),
        degenerate=_degenerate(ours),
        ref_degenerate=_degenerate(theirs),
        oracle_wins=wins,
    )


def _mean_length(asked: list[Asked]) -> float:
    """Lengths in tokens of the answering model, without the end of the turn."""
    return float(np.mean([len(answer.token_ids) - answer.ended for _, answer in asked]))


def _degenerate(asked: list[Asked]) -> float:
    ids = [np.array(answer.token_ids[: len(answer.token_ids) - answer.ended]) for _, answer in asked]
    return float(np.mean([is_degenerate(one) for one in ids]))
