"""Push a trained model or adapter to the Hub: which files are pushed and which are not."""

import json
from pathlib import Path

from sepo_data.errors import OutputError
from sepo_data.hub.errors import line_of
from sepo_data.hub.pushing import Artifact, push_files, sorted_by_path

from .folder import RECORD_NAME, Record

_CHAT_TEMPLATES = "additional_chat_templates/*.jinja"
# Includes files that from_pretrained would still read after a later push without them.
TRAINED = Artifact(
    "model",
    RECORD_NAME,
    ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt", _CHAT_TEMPLATES),
    "Push model",
)
_PICKLED_STATES = (".bin", ".pt", ".pth", ".pkl")  # states of optimizer and trainer; weights are safetensors


def push_model(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Push a finished folder of ``sepo-train``, a model or an adapter, in one commit.

    Files of an earlier push that a loader would still read (shards, an adapter, a tokenizer) but that the
    folder no longer has are deleted in the same commit. Checkpoints, hidden files, and the states of
    optimizer and trainer are not pushed. Pushing an unchanged folder makes no second commit.

    Args:
        folder: Weights as safetensors with their configuration, card and ``sepo_training.json``.
        repo_id: ``user/name`` or ``organization/name``; created if it does not exist.
        private: Create it private, and refuse a public one; always done if, according to the training
            record, the dataset is private or gated.

    Returns:
        The SHA of the commit with the folder, for ``from_pretrained(repo_id, revision=sha)``.

    Raises:
        OutputError: If the folder is not a finished model.
        HubError: If the Hub refuses, or cannot be reached.
    """
    files = trained_files(folder)
    return push_files(files, repo_id, TRAINED, private=private or trained_on_restricted(folder))


def trained_files(folder: Path) -> dict[str, Path]:
    """The files of a push of a model or adapter, by path in the repository.

    All files at the top of the folder except hidden ones and the states of optimizer and trainer;
    checkpoints are not pushed.

    Raises:
        OutputError: If the folder is not a finished model of sepo-train.
    """
    config, weights = "config.json", _weight_files(folder)
    if (folder / "adapter_config.json").is_file():
        config, weights = "adapter_config.json", ["adapter_model.safetensors"]
    required = (config, *weights, "README.md", RECORD_NAME)
    problems = [f"{name} is missing" for name in required if not (folder / name).is_file()]
    if not problems and not _training_record(folder).get("finished", True):
        problems = [f"{RECORD_NAME} is that of an unfinished run"]
    if problems:
        raise OutputError(f"{folder}: not a finished model ({problems[0]}). Let sepo-train finish first.")
    for name in weights:
        _check_weights(folder / name)
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not _stays_behind(path.name)]
    return sorted_by_path(folder, [*files, *sorted(folder.glob(_CHAT_TEMPLATES))])


def trained_on_restricted(folder: Path) -> bool:
    """Whether a model's training record says that its dataset is private or gated.

    Raises:
        OutputError: If the record cannot be read.
    """
    return bool(_training_record(folder)["dataset"].get("restricted"))


def _stays_behind(name: str) -> bool:
    return name.startswith(".") or name.endswith(_PICKLED_STATES) or name == "trainer_state.json"


def _training_record(folder: Path) -> Record:
    path = folder / RECORD_NAME
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        record["dataset"].get("restricted")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(path, error) from error
    return record


def _weight_files(folder: Path) -> list[str]:
    """Names of a model's weight files, whether they exist or not."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return ["model.safetensors"]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if elsewhere := [name for name in names if Path(name).name != name]:
            raise ValueError(f"it names {elsewhere[0]}")
        return names
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(index, error) from error


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:  # reads the header, which must match the file's size
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> OutputError:
    return OutputError(f"{path}: cannot be read ({line_of(error)}). Train again, or copy it again.")
