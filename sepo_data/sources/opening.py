"""Find a dataset on the Hub or on this machine, and open one split of it as a memory-mapped file.

``datasets`` finds the configs, splits and files of a Hub dataset or a folder, and reads parquet and similar
formats; ``text_files`` reads JSON and CSV. Pairs are found in ``preferences``.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import HubError, PreferenceError, first_line
from ..files import name_of, paths_outside
from ..schema import MANIFEST_NAME, SPLIT_NAME
from .arrow_cache import CachedRows
from .compressed import DataFile
from .faults import NoFilesError, NoSplitError, one_line
from .prepared import arrow_rows, downloaded, prepared_rows
from .text_files import SUFFIXES, digest_of, is_text_file, read_text_files, splits_of, suffix_of

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

log = logging.getLogger(__name__)

_OTHER_SPLIT = re.compile(r"(?<![a-z])(test|dev|val|valid|validation|eval)(?![a-z])", re.IGNORECASE)
_ABOUT_DATA = {
    "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json",
    MANIFEST_NAME,
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """The rows of one split, which stay on disk, and where they come from.

    Attributes:
        rows: The rows.
        name: Hub id, or the name of the file or folder without its parents.
        split: Name of the split.
        revision: Commit on the Hub, or ``sha256:…`` of the local content.
        config: Configuration, if the dataset has several.
        card: YAML of the source's card.
        restricted: Private or gated on the Hub.
        repairs: Changes to the texts and their counts: ``{"lone surrogates replaced": 3}``.
        json_columns: Text columns with JSON, because their values share no Arrow type.
        origins: Converted columns → the source columns of their content.
        pairs_from: What the pairs were made from, if the source has none.
        part: The split as requested, unless it is one whole split: ``train[:1000]``, ``train+test``.
    """

    rows: "datasets.Dataset"
    name: str
    split: str
    revision: str
    config: str | None = None
    card: dict[str, object] = field(default_factory=dict)
    restricted: bool = False
    repairs: dict[str, int] = field(default_factory=dict)
    json_columns: frozenset[str] = frozenset()
    origins: dict[str, str | None] = field(default_factory=dict)
    pairs_from: str | None = None
    part: str | None = None

    @property
    def schema(self) -> "pa.Schema":
        """Arrow types of the columns."""
        return self.rows.features.arrow_schema


def open_split(dataset: str, config: str | None, split: str, revision: str | None) -> Source:
    """Open one split of a file, a folder or a Hub dataset; a local path takes precedence over the Hub.

    Raises:
        PreferenceError: If it does not exist, has no such config or split, or a file cannot be read.
        HubError: If the Hub refuses, or cannot be reached.
    """
    path = Path(dataset).expanduser()
    files = [] if path.exists() else _matching(path)
    if not path.exists() and not files:
        from ..files import is_path

        if address := re.match(r"(hf://|https://huggingface\.co/)datasets/([^/]+/[^/@]+)", dataset):
            raise PreferenceError(f"{dataset}: an address. Give the name on the Hub, {address[2]}.")
        if "://" in dataset:
            raise PreferenceError(f"{dataset}: an address. Download it, and give the file.")
        if is_hub_id(dataset) and not is_path(dataset):
            found = find_on_hub(dataset, config, split, revision)
            return found.source(_rows_of(found.builder, split, dataset, found.files))
        raise PreferenceError(
            f"{dataset}: no such file or folder. Check the path, or give a Hub id like user/name."
        )
    if revision is not None:
        problem = "only Hub datasets have revisions"
        raise PreferenceError(f"{dataset}: {problem}. Leave out the revision {revision}.")
    if path.is_dir():
        return _open_folder(path, dataset, config, split)
    return _open_files(files or [path], path, dataset, config, split)


def _matching(pattern: Path) -> list[Path]:
    """The files that match a pattern like ``data/*.jsonl``, sorted."""
    anchor = Path(pattern.anchor) if pattern.is_absolute() else Path()
    parts = str(pattern.relative_to(anchor)) if pattern.is_absolute() else str(pattern)
    return sorted(path for path in anchor.glob(parts) if path.is_file()) if set("*?[") & set(parts) else []


def is_hub_id(dataset: str) -> bool:
    """Whether a name that is no local file or folder can be a Hub id."""
    is_file = is_text_file(dataset) or suffix_of(dataset) in (".parquet", ".arrow")
    return not is_file and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", dataset, re.ASCII) is not None


class HubSplit(NamedTuple):
    """A split of a Hub dataset; ``files``: name in messages → address."""

    name: str
    split: str
    config: str | None
    facts: Any
    builder: Any
    files: dict[str, str]

    def source(self, read: CachedRows) -> Source:
        """The source with these rows."""
        facts = self.facts
        restricted = facts.private or facts.gated
        place = (self.name, self.split, facts.revision, self.config, facts.card, restricted)
        return Source(read.rows, *place, read.repairs, read.json_columns)


def find_on_hub(name: str, config: str | None, split: str, revision: str | None) -> HubSplit:
    """Find the files of a split of a Hub dataset.

    Raises:
        PreferenceError: If it has no such config or split.
        HubError: If the Hub refuses, or cannot be reached.
    """
    from ..hub.client import dataset_revision

    facts = dataset_revision(name, revision)
    builder = _builder(name, name, config, facts.revision)
    files = _files_of(builder, split, name, f"hf://datasets/{name}@{facts.revision}/")
    return HubSplit(name, split, config, facts, builder, files)


def _open_files(paths: Sequence[Path], name: Path, dataset: str, config: str | None, split: str) -> Source:
    _refuse_config(config, dataset)
    held = splits_of(DataFile(dataset, paths[0])) if len(paths) == 1 and is_text_file(paths[0].name) else []
    _check_split(split, held or ["train"], dataset)
    if len(held) > 1:
        log.warning("%s: it holds the splits %s; %s is read", dataset, ", ".join(held), split)
    files = {dataset if path == name else str(path): str(path) for path in paths}
    digest = digest_of([DataFile(path.name, path) for path in paths])
    endings = {suffix_of(path.name) for path in paths}
    if all(is_text_file(path.name) for path in paths):
        read = read_text_files(downloaded(files, dataset), split if len(held) > 1 else None)
    elif endings == {".parquet"}:
        found = [escape(str(path.resolve())) for path in paths]
        builder = _builder("parquet", dataset, None, None, data_files={split: found})
        read = _rows_of(builder, split, dataset, files, digest)
    elif endings == {".arrow"}:
        read = CachedRows(arrow_rows(paths, dataset), {}, frozenset())
    else:
        problem = f'files that end in "{", ".join(sorted(endings))}" are not read'
        known = ", ".join((".parquet", ".arrow", *SUFFIXES))
        raise PreferenceError(f"{dataset}: {problem}. Convert it to one of {known}.")
    revision = f"sha256:{digest}"
    return Source(
        read.rows, name_of(name), split, revision, repairs=read.repairs, json_columns=read.json_columns
    )


def _open_folder(path: Path, dataset: str, config: str | None, split: str) -> Source:
    from huggingface_hub.repocard import metadata_load

    root = path.resolve()
    readme = root / "README.md"
    with one_line(str(readme)):
        card = (metadata_load(readme) if readme.exists() else None) or {}
    if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
        _refuse_config(config, dataset)
        read = CachedRows(_saved_to_disk(root, dataset, split), {}, frozenset())
        saved = [str(file["filename"]) for file in read.rows.cache_files]
        _check_inside(saved, f"{root}/", dataset)
        digest = _digest_in(root, saved)
    else:
        if set("*?[") & set(str(root)):
            problem = "*, ? and [ in the path of a folder are read as patterns"
            raise PreferenceError(f"{dataset}: {problem}. Rename it, or give its files.")
        try:
            builder = _builder(str(root), dataset, config, None)
        except NoFilesError:  # `datasets` finds small letters only
            there = _readable_files(root)
            if not there or any(_OTHER_SPLIT.search(path.stem) for path in there):
                raise
            return _open_files(there, root, dataset, config, split)
        files = _files_of(builder, split, dataset, f"{root}/")
        digest = _digest_in(root, files.values())
        read = _rows_of(builder, split, dataset, files, digest)
        if "configs" not in card:
            read = read._replace(repairs={**_left_out(root, builder, dataset), **read.repairs})
    revision = f"sha256:{digest}"
    return Source(
        read.rows, name_of(root), split, revision, config, card, False, read.repairs, read.json_columns
    )


def _readable_files(root: Path) -> list[Path]:
    """The files in a folder that can be read, without hidden ones and those about the data."""
    found = []
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith((".", "__")) for part in path.relative_to(root).parts)
        readable = is_text_file(path.name) or suffix_of(path.name) in (".parquet", ".arrow")
        if path.is_file() and readable and not hidden and path.name not in _ABOUT_DATA:
            found.append(path)
    return found


def _left_out(root: Path, builder: Any, dataset: str) -> dict[str, int]:
    """For `Source.repairs`: files in no split, above all those of another format, which is logged."""
    used = {str(url) for urls in builder.config.data_files.values() for url in urls}
    names = [str(path.relative_to(root)) for path in _readable_files(root) if str(path) not in used]
    if not names:
        return {}
    what = f"files left out, in no split of the folder: {', '.join(names)}"
    log.warning(
        "%s: %s. Give a pattern of files, like %s/*.jsonl, to choose", dataset, what, dataset.rstrip("/")
    )
    return {what: len(names)}


def _digest_in(root: Path, files: Iterable[str]) -> str:
    return digest_of([DataFile(Path(file).relative_to(root).as_posix(), Path(file)) for file in files])


def _saved_to_disk(root: Path, dataset: str, split: str) -> "datasets.Dataset":
    import datasets

    with one_line(dataset):
        saved = datasets.load_from_disk(str(root))
    if isinstance(saved, datasets.Dataset):
        saved = {str(saved.split or "train"): saved}
    _check_split(split, list(saved), dataset)
    return saved[split]


def _builder(path: str, dataset: str, config: str | None, revision: str | None, **options: object) -> object:
    """``datasets.load_dataset_builder``, which finds configs, splits and files without reading them."""
    import datasets

    try:
        return datasets.load_dataset_builder(path, name=config, revision=revision, **options)
    except FileNotFoundError as error:
        raise NoFilesError(
            f"{dataset}: no data files in it. Put .parquet, .jsonl or .csv files there, or give a pattern of "
            f"its files, like {dataset.rstrip('/')}/*.jsonlines."
        ) from error
    except ValueError as error:
        with one_line(dataset):
            configs = datasets.get_dataset_config_names(path, revision=revision)
        if config in configs or (config is None and len(configs) < 2):
            raise PreferenceError(f"{dataset}: cannot be read: {first_line(error)}") from error
        problem = "has several configs" if config is None else f'no config "{config}"'
        raise PreferenceError(
            f"{dataset}: {problem}. Choose with `config_name`: {', '.join(configs)}."
        ) from error
    except Exception as error:  # whatever the HTTP client, the YAML reader or the file system raised
        failure = PreferenceError if revision is None else HubError
        raise failure(f"{dataset}: cannot be opened: {first_line(error)}") from error


def _files_of(builder: Any, split: str, dataset: str, prefix: str) -> dict[str, str]:
    """The files of a split: name in messages → address; all addresses start with ``prefix``."""
    _check_split(split, [str(name) for name in builder.config.data_files], dataset)
    urls = list(builder.config.data_files[split])
    _check_inside(urls, prefix, dataset)
    return {f"{dataset.rstrip('/')}/{url.removeprefix(prefix)}": str(url) for url in urls}


def _rows_of(
    builder: Any, split: str, dataset: str, files: dict[str, str], digest: str | None = None
) -> CachedRows:
    """The rows of the files; ``builder`` reads those that are neither JSON nor CSV."""
    if all(map(is_text_file, files)):
        return read_text_files(downloaded(files, dataset))
    return prepared_rows(builder, split, dataset, files, digest)


def _check_split(split: str, splits: Sequence[str], dataset: str) -> None:
    if split not in splits:
        known = ", ".join(splits)
        raise NoSplitError(f'{dataset}: no split "{split}". Choose with `split`: {known}.', splits)
    if not SPLIT_NAME.fullmatch(split):
        problem = "split names are letters, digits and _, with dots between them"
        raise PreferenceError(f'{dataset}: split "{split}": {problem}. Rename it.')


def _check_inside(files: Iterable[str], prefix: str, dataset: str) -> None:
    """Refuse files outside the folder: a card, or what ``save_to_disk`` writes, may name any file."""
    for file in paths_outside(files, prefix):
        problem = f"it names {file}, which is not in it"
        raise PreferenceError(f"{dataset}: {problem}. Correct data_files in its README.md or state.json.")


def _refuse_config(config: str | None, dataset: str) -> None:
    if config is not None:
        raise PreferenceError(f'{dataset}: it has no configs. Leave out the config "{config}".')
