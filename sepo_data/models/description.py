"""What a model, or a pair of oracle and reference, can read: tokenizer, vocabulary, context. No weights."""

import filecmp
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from ..annotated.manifest import ModelFacts
from ..errors import ModelError, TokenizerError, differences
from .checkpoints import (
    CONFIG,
    NO_TRUST,
    Checkpoint,
    Snapshot,
    Trust,
    check_quantised,
    errors_as,
    open_checkpoint,
    open_snapshot,
    same_model,
)

log = logging.getLogger("sepo")

TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",  # all that those without a vocabulary have, like ByT5's
)


_OF_A_TOKENIZER = re.compile(r"tokeni[sz]|vocab|merges|special_tokens|added_tokens|chat_template|.*\.model$")


@dataclass(frozen=True)
class Description:
    """A model, described without its weights.

    Attributes:
        checkpoint: Where its weights are.
        tokenizer: Its tokenizer.
        max_context: Maximum number of tokens that it reads; None if unlimited.
    """

    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    max_context: int | None


@dataclass(frozen=True)
class PairFacts:
    """Oracle and reference, described without their weights.

    Attributes:
        tokenizer: The one that both read.
        oracle: What the oracle is.
        ref: What the reference is.
        max_context: Maximum number of tokens that both read; None if unlimited.
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
    base: str | None = None,
    trust: Trust = NO_TRUST,
) -> PairFacts:
    """Describe oracle and reference, and check that they belong together; no weights are loaded.

    Args:
        oracle: Name on the Hub or folder, of a model or of a PEFT adapter.
        ref: The same.
        oracle_revision: Branch, tag or commit of an oracle on the Hub.
        ref_revision: Branch, tag or commit of a reference on the Hub.
        base: Base of the adapters among them, if not the one that they name.
        trust: What of their files may run code.

    Raises:
        ModelError: If one cannot be used, both are the same, or their vocabularies differ.
        TokenizerError: If no tokenizer can be loaded.
        HubError: If the Hub cannot be reached.
    """
    checkpoints = (
        open_checkpoint(oracle, oracle_revision, trust, base),
        open_checkpoint(ref, ref_revision, trust, base),
    )
    facts = [checkpoint.facts for checkpoint in checkpoints]
    if (facts[0].revision, facts[0].base) == (facts[1].revision, facts[1].base):
        raise same_model(*facts)
    for checkpoint in checkpoints:
        check_quantised(checkpoint)
    _check_base(*checkpoints)
    _check_configs(*checkpoints)
    tokenizer = _common_tokenizer(*checkpoints)
    contexts = [_max_context(checkpoint.config) for checkpoint in checkpoints]
    limit = min((context for context in contexts if context is not None), default=None)
    return PairFacts(tokenizer, facts[0], facts[1], limit, checkpoints)


def describe_model(name: str, revision: str | None = None, trust: Trust = NO_TRUST) -> Description:
    """Describe a single model; no weights are loaded.

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
        raise TokenizerError(f"{name}: has no tokenizer. Save the one that it was trained with next to it.")
    _check_embeds(checkpoint, tokenizer)
    return Description(checkpoint, tokenizer, _max_context(checkpoint.config))


def load_tokenizer(
    name: str, revision: str | None = None, trust: Trust = NO_TRUST
) -> tuple[PreTrainedTokenizerBase, int | None]:
    """Load a tokenizer from a model's folder or repository, or from one that holds nothing else.

    Returns:
        The tokenizer, and the maximum number of tokens that its model reads; None if unknown.

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


def _check_base(oracle: Checkpoint, ref: Checkpoint) -> None:
    """Warn if the oracle is an adapter trained on another model than the reference, rarely intended."""
    if oracle.adapter is not None and oracle.base.revision != ref.base.revision:
        log.warning(
            "the oracle is an adapter on %s, the reference is %s: is it what the oracle was trained from?",
            oracle.base.name,
            ref.facts.name,
        )


# what does not change the function that the same weights compute
_HARMLESS = re.compile(
    r"^_|name_or_path|version|dtype|architectures|cache|token_id|vocab_size|initializer|init_std|dropout|2label|label2"
    r"|max_position|n_positions|tie_word|quantization|auto_map|pretraining_tp|chunk_size_feed|output_|return_dict"
)


def _check_configs(oracle: Checkpoint, ref: Checkpoint) -> None:
    """Warn if the same weights would compute something else: another RoPE, another window, other sizes."""
    ours, theirs = (checkpoint.config.get_text_config().to_dict() for checkpoint in (oracle, ref))
    found = [
        f"{name} {mine!s:.30} and {other!s:.30}"
        for name, other, mine in differences(theirs, ours)
        if not _HARMLESS.search(name)
    ]
    if found:
        log.warning(
            "the config.json of oracle and reference differ: %s: was the oracle trained from this reference?",
            "; ".join(found[:3]),
        )


def _common_tokenizer(oracle: Checkpoint, ref: Checkpoint) -> PreTrainedTokenizerBase:
    """The oracle's tokenizer or, if it has none, the reference's; if both have one, they must agree.

    Control tokens that only one of them has, after all others, are let pass: an added [PAD] is in no text.
    """
    ours = _load_tokenizer(oracle)
    if ours is not None and _same_tokenizer_files(oracle, ref):  # to read it again takes seconds
        _check_embeds(oracle, ours)
        _check_embeds(ref, ours)
        return ours
    theirs = _load_tokenizer(ref)
    if ours is None or theirs is None:
        found = theirs if ours is None else ours
        if found is None:
            raise TokenizerError(
                f"neither {oracle.facts.name} nor {ref.facts.name} has a tokenizer. Save the one that they "
                "were trained with next to the oracle's weights."
            )
        for checkpoint in (oracle, ref):
            _check_embeds(checkpoint, found)
        return found
    our_ids, their_ids = ours.get_vocab(), theirs.get_vocab()
    differing = sorted(t for t in our_ids.keys() | their_ids.keys() if our_ids.get(t) != their_ids.get(t))
    shared = len(our_ids.keys() & their_ids.keys())
    special = {
        token.content: token_id
        for tokenizer in (ours, theirs)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    added = {t for t in differing if special.get(t, -1) >= shared}
    template = str(ours.chat_template or theirs.chat_template or "")
    used = [t for t in differing if t not in added or t in template or t in (ours.eos_token, ours.bos_token)]
    if used:
        token = used[0]
        raise ModelError(
            f"oracle and reference have different vocabularies: the id of {token!r} is {our_ids.get(token)} "
            f"for one and {their_ids.get(token)} for the other ({len(differing):,} such tokens). Give as the "
            "reference the model that the oracle was trained from."
        )
    if added:
        names = ", ".join(sorted(added)[:3])
        log.info("tokens that only one of the two models has are not used: %s", names)
    _check_templates(oracle, ref, ours, theirs)
    _check_embeds(oracle, ours)
    _check_embeds(ref, theirs)
    if len(our_ids) <= len(their_ids):
        return ours
    theirs.chat_template, theirs.eos_token = ours.chat_template, ours.eos_token
    return theirs  # to it the added tokens are plain text


def _check_templates(
    oracle: Checkpoint, ref: Checkpoint, ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase
) -> None:
    """One template serves both models, so that rewards compare the same text."""
    if ours.chat_template is None and theirs.chat_template is not None:
        log.warning(
            "%s has no chat template and %s has one: prompts are used as they are. Pass `chat_template=FILE` "
            "if the oracle was trained with one",
            oracle.facts.name,
            ref.facts.name,
        )
    elif theirs.chat_template not in (None, ours.chat_template):
        log.warning(
            "%s and %s have different chat templates: both are given prompts in the oracle's",
            oracle.facts.name,
            ref.facts.name,
        )


def _load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    place = _tokenizer_place(checkpoint)
    return None if place is None else _read_tokenizer(place, checkpoint.trust)


def _tokenizer_place(checkpoint: Checkpoint) -> Snapshot | None:
    """Where a model's tokenizer is: with its adapter, or with the base."""
    places = (checkpoint.adapter, checkpoint.base)
    return next((one for one in places if one is not None and one.files.intersection(TOKENIZERS)), None)


def _same_tokenizer_files(oracle: Checkpoint, ref: Checkpoint) -> bool:
    """Whether both tokenizers have byte-identical files, in two folders or in one."""
    ours, theirs = _tokenizer_place(oracle), _tokenizer_place(ref)
    if ours is None or theirs is None or oracle.config.model_type != ref.config.model_type:
        return False
    if (ours.location, ours.commit) == (theirs.location, theirs.commit):
        return True
    names = [sorted(filter(_OF_A_TOKENIZER.match, place.files)) for place in (ours, theirs)]
    if ours.commit or theirs.commit or names[0] != names[1]:
        return False
    folders = Path(ours.location), Path(theirs.location)
    return all(filecmp.cmp(folders[0] / name, folders[1] / name, shallow=False) for name in names[0])


def _read_tokenizer(place: Snapshot, trust: Trust) -> PreTrainedTokenizerBase:
    with errors_as(TokenizerError, place):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place.location, revision=place.commit, trust_remote_code=trust.remote_code
        )
    if tokenizer.chat_template is None and "chat_template.json" in place.files:
        log.warning(
            "%s: chat_template.json is a processor's, which a tokenizer does not read. Copy its template to "
            "chat_template.jinja, or pass it with `chat_template`",
            place.location,
        )
    return tokenizer


def _check_embeds(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> None:
    """Every token needs an embedding; Gemma 3 has a control token without one, which no text uses."""
    vocabulary = checkpoint.vocabulary
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
    return int(limit) if limit and limit > 0 else None  # XLNet: -1
