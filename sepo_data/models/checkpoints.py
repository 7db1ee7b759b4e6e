"""Find a model without loading its weights: its revision, its base, its files and its config.

A model is a folder or a repository on the Hub, pinned to a commit; a PEFT adapter is
one that names another as its base. Code in it is not run, and pickled weights are
not opened, unless the user allows it.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.utils.hub import cached_file

from ..annotated.manifest import ModelFacts, ModelRevision
from ..errors import ModelError, SepoError, first_line
from ..files import file_sha256, is_path, name_of
from ..hub.client import model_files, model_revision

log = logging.getLogger("sepo")

CONFIG, ADAPTER_CONFIG, BASE = "config.json", "adapter_config.json", "base_model_name_or_path"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors",)
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")
CONTENT = ("*.safetensors", "*.safetensors.index.json", CONFIG, ADAPTER_CONFIG)  # hashed files of a folder


@dataclass(frozen=True)
class Trust:
    """Which of a model's files may run code: none, unless the user allows it.

    Attributes:
        pickle: Pickled weights may be opened if there are no others.
        remote_code: Python code next to the weights may be run.
    """

    pickle: bool = False
    remote_code: bool = False


NO_TRUST = Trust()


@dataclass(frozen=True)
class Snapshot:
    """A folder, or a repository on the Hub at one commit.

    Attributes:
        location: The folder's path, or the repository's name.
        revision: As in `ModelFacts`.
        commit: The commit; None for a folder.
        files: Names of the files at its top.
    """

    location: str
    revision: str
    commit: str | None
    files: frozenset[str]

    @property
    def name(self) -> str:
        """Its name in `ModelFacts`."""
        return self.location if self.commit else name_of(Path(self.location).resolve())


@dataclass(frozen=True)
class Checkpoint:
    """Where one model's weights are: all in ``base``, or partly in an ``adapter`` on top of it.

    Attributes:
        base: The model, or the base of the adapter.
        adapter: The adapter.
        config: Of the base.
        trust: What of their files may run code.
        vocabulary: Number of tokens: those of the base, or of the adapter's own embeddings.
    """

    base: Snapshot
    adapter: Snapshot | None
    config: PreTrainedConfig
    trust: Trust
    vocabulary: int

    def shares_base(self, other: "Checkpoint") -> bool:
        """Whether both can share one base in memory; an added token would change the other's softmax."""
        return self.base.revision == other.base.revision and self.vocabulary == other.vocabulary

    @property
    def pickled(self) -> bool:
        """Whether the base's weights are pickles."""
        return not self.base.files.intersection(WEIGHTS)

    @cached_property
    def num_parameters(self) -> int:
        """Number of parameters of the base, counted without loading weights."""
        with errors_as(ModelError, self.base), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config, trust_remote_code=self.trust.remote_code)
        return sum(weights.numel() for weights in model.parameters())

    @property
    def facts(self) -> ModelFacts:
        """Its facts for the manifest."""
        if self.adapter is None:
            return ModelFacts(self.base.name, self.base.revision, None)
        base = f"{self.base.name}@{self.base.revision}"
        return ModelFacts(self.adapter.name, self.adapter.revision, base)

    @property
    def revisions(self) -> ModelRevision:
        """The revisions of everything that determines its outputs."""
        if self.adapter is None:
            return ModelRevision(self.base.revision, None)
        return ModelRevision(self.adapter.revision, self.base.revision)


def same_model(oracle: ModelFacts, ref: ModelFacts) -> ModelError:
    """The error for an oracle that is the reference."""
    return ModelError(
        f"oracle ({oracle.name}) and reference ({ref.name}) are the same model, so all rewards would be 0. "
        "Give as the oracle the model that was trained with DPO from the reference, long enough to change it."
    )


def not_causal(place: Snapshot, model_type: str) -> ModelError:
    """The error for a model that does not predict the next token."""
    return ModelError(
        f"{place.location}: a {model_type} model does not predict each token from those before it alone. "
        "Use a causal (decoder-only) language model."
    )


@contextmanager
def errors_as(kind: type[SepoError], place: Snapshot) -> Iterator[None]:
    """Turn any error of the loaders into one line that names the model."""
    try:
        yield
    except Exception as error:
        what = first_line(error)
        if "trust_remote_code" in str(error):
            what = "needs code of its own. Read it, and if you trust it pass `trust_remote_code=True`."
        elif isinstance(error, KeyError):
            unknown = (
                f"{what} is missing from its files, or the installed transformers or peft do not know it"
            )
            what = f"{unknown}. Save it again, or upgrade them."
        raise kind(f"{place.location}: {what}") from error


def open_checkpoint(
    name: str, revision: str | None, trust: Trust, base_name: str | None = None
) -> Checkpoint:
    """Open a model or an adapter without its weights; ``base_name`` overrides the base that it names."""
    base, adapter = open_snapshot(name, revision, trust), None
    if ADAPTER_CONFIG in base.files:
        _check_weights(base, ADAPTER_WEIGHTS, trust)
        base, adapter = _open_base(base, trust, base_name), base
        if CONFIG in adapter.files and adapter.files.intersection(WEIGHTS):
            log.warning(
                "%s holds an adapter and whole weights: the adapter is used, on %s. Without %s the weights "
                "would be",
                adapter.location,
                base.location,
                ADAPTER_CONFIG,
            )
    _check_config(base)
    _check_weights(base, WEIGHTS, trust)
    if base.files.issuperset(WEIGHTS):
        log.warning("%s holds weights twice: %s is used, the shards of %s are not", base.location, *WEIGHTS)
    with errors_as(ModelError, base):
        config = AutoConfig.from_pretrained(
            base.location, revision=base.commit, trust_remote_code=trust.remote_code
        )
    own_code = trust.remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.is_encoder_decoder or not (own_code or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING):
        if hasattr(config, "vision_config"):
            problem = f"a {config.model_type} model reads images too, and only text models are scored"
            raise ModelError(
                f"{base.location}: {problem}. Save its text part as a causal language model, and give that."
            )
        raise not_causal(base, config.model_type)
    vocabulary = int(config.get_text_config().vocab_size)
    return Checkpoint(base, adapter, config, trust, _vocabulary(adapter, vocabulary))


def _check_config(base: Snapshot) -> None:
    if CONFIG in base.files:
        return
    steps = [int(found[1]) for name in base.files if (found := re.fullmatch(r"checkpoint-(\d+)", name))]
    if steps:
        newest = f"{base.location}/checkpoint-{max(steps)}"
        raise ModelError(f"{base.location}: no {CONFIG} in it, only checkpoints. Give {newest}.")
    for named in sorted(Path(base.location).glob(f"*/{ADAPTER_CONFIG}")):  # peft saves those with a name so
        raise ModelError(f"{base.location}: no model in it, but an adapter below it. Give {named.parent}.")
    raise ModelError(f"{base.location}: no {CONFIG} in it. Give a folder made by save_pretrained.")


def check_quantised(checkpoint: Checkpoint) -> None:
    """Warn about quantised weights, and refuse them under an adapter, which also fits a full-precision base.

    Raises:
        ModelError: For an adapter on a quantised base.
    """
    settings = getattr(checkpoint.config, "quantization_config", None)
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    problem = f"its weights are quantised ({getattr(method, 'value', method)})"
    if checkpoint.adapter is None:
        log.warning("%s: %s, and so are the rewards", checkpoint.base.location, problem)
        return
    base = f"the base of this adapter is {checkpoint.base.location}"
    raise ModelError(
        f"{checkpoint.adapter.location}: {base}, and {problem}. Pass `base` with the model in full precision."
    )


def _vocabulary(adapter: Snapshot | None, vocabulary: int) -> int:
    """The number of tokens; those of an adapter's own embeddings if it has a tokenizer too."""
    if adapter is None or not {ADAPTER_WEIGHTS[0], "tokenizer_config.json"} <= adapter.files:
        return vocabulary
    with errors_as(ModelError, adapter):
        path = cached_file(adapter.location, ADAPTER_WEIGHTS[0], revision=adapter.commit)
        with safe_open(str(path), "pt") as weights:
            shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
    rows = [
        shape[0]
        for key, shape in shapes.items()
        if len(shape) == 2 and "lora_" not in key and re.search(r"embed|wte|lm_head", key)
    ]
    return int(rows[0]) if rows else vocabulary


def open_snapshot(name: str, revision: str | None, trust: Trust) -> Snapshot:
    """Find a folder, or a repository and its commit."""
    folder = Path(name).expanduser()
    name = str(folder) if folder.is_dir() else name
    if not folder.is_dir():
        if is_path(name):
            raise ModelError(
                f"{name}: no such folder. Check the path, or give a name on the Hub like user/name."
            )
        commit = model_revision(name, revision)
        return Snapshot(name, commit, commit, model_files(name, commit, (CONFIG, ADAPTER_CONFIG)))
    if revision is not None:
        raise ModelError(f'{name}: a folder has no revision "{revision}". Leave it out, or give user/name.')
    files = frozenset(path.name for path in folder.iterdir())
    return Snapshot(name, _content_hash(folder, trust), None, files)


def _content_hash(folder: Path, trust: Trust) -> str:
    """``sha256:…`` of everything in a folder that affects a model's output."""
    patterns = [*CONTENT, *(PICKLES if trust.pickle else ()), *(("*.py",) if trust.remote_code else ())]
    total = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        total.update(f"{path.name} {file_sha256(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _open_base(adapter: Snapshot, trust: Trust, name: str | None) -> Snapshot:
    """Find an adapter's base: a folder, possibly next to the adapter, or a name on the Hub."""
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise ModelError(f"{adapter.location}: a PEFT adapter. Run pip install peft first.") from error
    with errors_as(ModelError, adapter):
        config = PeftConfig.from_pretrained(adapter.location, revision=adapter.commit)
    if config.is_prompt_learning:
        raise ModelError(
            f"{adapter.location}: an adapter of type {config.peft_type.value} adds tokens to the prompt, "
            "which is not supported. Use LoRA or another that changes weights."
        )
    if name is not None:
        return open_snapshot(name, None, trust)
    if not config.base_model_name_or_path:
        raise ModelError(f"{adapter.location}: its base is unknown. Set {BASE} in {ADAPTER_CONFIG}.")
    base = Path(config.base_model_name_or_path)
    relative = Path(adapter.location, base)
    try:
        if folder := next((place for place in (base, relative) if place.is_dir()), None):
            return open_snapshot(str(folder), None, trust)
        return open_snapshot(config.base_model_name_or_path, config.revision, trust)
    except ModelError as error:
        raise ModelError(f"{adapter.location}: {BASE} in {ADAPTER_CONFIG}: {error}") from error


def _check_weights(place: Snapshot, weights: tuple[str, ...], trust: Trust) -> None:
    if place.files.intersection(weights):
        _check_index(place, weights)
        return
    pickled = sorted(place.files.intersection(PICKLES))
    if pickled and trust.pickle:
        return
    if not pickled and any(name.endswith(".gguf") for name in place.files):
        problem = "only GGUF files in it, which are not read"
        raise ModelError(f"{place.location}: {problem}. Use the original model with {weights[0]}.")
    if not pickled:
        raise ModelError(f"{place.location}: no {weights[0]} in it. Check that the weights are complete.")
    raise ModelError(
        f"{place.location}: {pickled[0]} is a pickle, which can run code when loaded. Convert it to "
        f"{weights[0]} with model.save_pretrained(FOLDER) in a safe environment, or pass "
        "`allow_pickle=True` if you trust its author."
    )


def shards(place: Snapshot, index: str) -> set[str]:
    """The files that an index of sharded weights names."""
    path = cached_file(place.location, index, revision=place.commit)
    return set(map(str, json.loads(Path(str(path)).read_text(encoding="utf-8"))["weight_map"].values()))


def _check_index(place: Snapshot, weights: tuple[str, ...]) -> None:
    """The index of sharded weights may name pickles, which would be loaded too."""
    if weights[0] in place.files:
        return
    with errors_as(ModelError, place):
        named = shards(place, weights[1])
    if strange := sorted(name for name in named if not re.fullmatch(r"\w[\w.-]*\.safetensors", name)):
        raise ModelError(
            f"{place.location}: {weights[1]} names {strange[0]}, which is not a safetensors file next to it. "
            "Write the weights with model.save_pretrained(FOLDER)."
        )
