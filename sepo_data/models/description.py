"""What a model, or oracle and reference together, can read: tokenizer, vocabulary, context. No weights."""

from dataclasses import dataclass

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from ..annotated.manifest import ModelFacts
from ..errors import ModelError, TokenizerError
from .checkpoints import (
    CONFIG,
    NO_TRUST,
    Checkpoint,
    Snapshot,
    Trust,
    errors_as,
    open_checkpoint,
    open_snapshot,
    same_model,
)

TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",  # all that those without a vocabulary have, like ByT5's
)


@dataclass(frozen=True)
class Description:
    """A model as far as it is known without weights.

    Attributes:
        checkpoint: Where its weights are.
        tokenizer: Its tokenizer.
        max_context: Most tokens that it can read; None if nothing limits them.
    """

    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    max_context: int | None


@dataclass(frozen=True)
class PairFacts:
    """Oracle and reference as far as they are known without weights.

    Attributes:
        tokenizer: The one that both read.
        oracle: What the oracle is.
        ref: What the reference is.
        max_context: Most tokens that both can read; None if nothing limits them.
        checkpoints: Where the weights of oracle and reference are.
    """

    tokenizer: PreTrainedTokenizerBase
    oracle: ModelFacts
    ref: ModelFacts
    max_context: int | None
    checkpoints: tuple[Checkpoint, Checkpoint]


def describe_pair(
    oracle: str,
    ref: str,
    *,
    oracle_revision: str | None = None,
    ref_revision: str | None = None,
    trust: Trust = NO_TRUST,
) -> PairFacts:
    """Find out what oracle and reference are, and that they belong together; no weights are loaded.

    Args:
        oracle: Name on the Hub or folder, of a model or of a PEFT adapter.
        ref: The same.
        oracle_revision: Branch, tag or commit of an oracle on the Hub.
        ref_revision: Branch, tag or commit of a reference on the Hub.
        trust: What of their files may run code.

    Raises:
        ModelError: If one cannot be used, both are the same, or their vocabularies differ.
        TokenizerError: If no tokenizer can be loaded.
        HubError: If the Hub cannot be reached.
    """
    checkpoints = open_checkpoint(oracle, oracle_revision, trust), open_checkpoint(ref, ref_revision, trust)
    facts = [checkpoint.facts for checkpoint in checkpoints]
    if (facts[0].revision, facts[0].base) == (facts[1].revision, facts[1].base):
        raise same_model(*facts)
    tokenizer = _common_tokenizer(*checkpoints)
    for checkpoint in checkpoints:
        _check_embeds(checkpoint, tokenizer)
    contexts = [_max_context(checkpoint.config) for checkpoint in checkpoints]
    limit = min((context for context in contexts if context is not None), default=None)
    return PairFacts(tokenizer, facts[0], facts[1], limit, checkpoints)


def describe_model(name: str, revision: str | None = None, trust: Trust = NO_TRUST) -> Description:
    """Find out what a single model is; no weights are loaded.

    Args:
        name: Name on the Hub or folder, of a model or of a PEFT adapter.
        revision: Branch, tag or commit of a model on the Hub.
        trust: What of its files may run code.

    Raises:
        ModelError: If it cannot be used.
        TokenizerError: If no tokenizer can be loaded.
        HubError: If the Hub cannot be reached.
    """
    checkpoint = open_checkpoint(name, revision, trust)
    tokenizer = _load_tokenizer(checkpoint)
    if tokenizer is None:
        raise TokenizerError(f"{name}: has no tokenizer. Save the one that it was trained with beside it.")
    _check_embeds(checkpoint, tokenizer)
    return Description(checkpoint, tokenizer, _max_context(checkpoint.config))


def load_tokenizer(
    name: str, revision: str | None = None, trust: Trust = NO_TRUST
) -> tuple[PreTrainedTokenizerBase, int | None]:
    """Load a tokenizer from a model's folder or repository, or from one that holds nothing else.

    Returns:
        The tokenizer, and the most tokens that its model can read; None if nothing says so.

    Raises:
        ModelError: If there is no such folder or repository.
        TokenizerError: If there is no tokenizer in it.
        HubError: If the Hub cannot be reached.
    """
    place = open_snapshot(name, revision, trust)
    if not place.files.intersection(TOKENIZERS):
        raise TokenizerError(f"{name}: no tokenizer.json in it. Give the folder or name of a tokenizer.")
    tokenizer = _read_tokenizer(place, trust)
    if CONFIG not in place.files:
        return tokenizer, None
    with errors_as(ModelError, place):
        config = AutoConfig.from_pretrained(
            place.location, revision=place.commit, trust_remote_code=trust.remote_code
        )
    return tokenizer, _max_context(config)


def _common_tokenizer(oracle: Checkpoint, ref: Checkpoint) -> PreTrainedTokenizerBase:
    """The oracle's tokenizer or, where it has none, the reference's; if both have one, they must agree."""
    ours, theirs = _load_tokenizer(oracle), _load_tokenizer(ref)
    if ours is None or theirs is None:
        found = theirs if ours is None else ours
        if found is None:
            raise TokenizerError(
                f"neither {oracle.facts.name} nor {ref.facts.name} has a tokenizer. Save the one that they "
                "were trained with beside the oracle's weights."
            )
        return found
    our_ids, their_ids = ours.get_vocab(), theirs.get_vocab()
    differing = sorted(t for t in our_ids.keys() | their_ids.keys() if our_ids.get(t) != their_ids.get(t))
    if differing:
        token = differing[0]
        raise ModelError(
            f"oracle and reference have different vocabularies: the id of {token!r} is {our_ids.get(token)} "
            f"for one and {their_ids.get(token)} for the other ({len(differing):,} such tokens). Give as the "
            "reference the model that the oracle was trained from."
        )
    return ours


def _load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    for place in (checkpoint.adapter, checkpoint.base):
        if place is not None and place.files.intersection(TOKENIZERS):
            return _read_tokenizer(place, checkpoint.trust)
    return None


def _read_tokenizer(place: Snapshot, trust: Trust) -> PreTrainedTokenizerBase:
    with errors_as(TokenizerError, place):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place.location, revision=place.commit, trust_remote_code=trust.remote_code
        )
    return tokenizer


def _check_embeds(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> None:
    """Every token of a text needs an embedding; Gemma 3 has a control token without, and no text has it."""
    vocabulary = int(checkpoint.config.get_text_config().vocab_size)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    token_id, token = max((i, token) for token, i in tokenizer.get_vocab().items() if i not in special)
    if token_id >= vocabulary:
        raise ModelError(
            f"{checkpoint.facts.name}: knows {vocabulary:,} tokens, but {token!r} has id {token_id} in the "
            "tokenizer. Give a pair of models that read the same tokens."
        )


def _max_context(config: PreTrainedConfig) -> int | None:
    text = config.get_text_config()
    limit = None if getattr(text, "alibi", False) else getattr(text, "max_position_embeddings", None)
    return int(limit) if limit else None
