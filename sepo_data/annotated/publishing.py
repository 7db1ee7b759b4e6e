"""Push an annotated dataset to the Hub: check the folder, collect its files."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ..errors import OutputError, SchemaError
from ..hub.errors import line_of
from ..hub.pushing import Artifact, push_files, sorted_by_path
from ..schema import MANIFEST_NAME, validate
from .manifest import check_content, read_manifest

ANNOTATED = Artifact(
    "dataset", MANIFEST_NAME, ("data/*", "charts/*", "report.html"), "Push annotated dataset"
)


def push_annotated(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    pictures: Mapping[str, Path] = MappingProxyType({}),
) -> str:
    """Push a finished folder of ``sepo-annotate``: data, card and manifest in one commit.

    Data files of an earlier push that the folder no longer has are deleted in the same commit. Pushing an
    unchanged folder makes no second commit.

    Args:
        folder: What ``sepo-annotate`` or ``sepo merge`` has written.
        repo_id: ``user/name`` or ``organization/name``; created if it does not exist.
        private: Create it private, and refuse a public one; always done if the source of the
            dataset is private or gated.
        pictures: More files, by path in the repository; a card among them replaces the folder's.

    Returns:
        The SHA of the commit with the folder, for ``load_annotated(repo_id, revision=sha)``.

    Raises:
        OutputError: If the folder is not finished.
        SchemaError: If its data violates the contract of an annotated dataset.
        HubError: If the Hub refuses, or cannot be reached.
    """
    files = annotated_files(folder)
    private = private or read_manifest(folder, str(folder)).source.restricted
    return push_files({**files, **pictures}, repo_id, ANNOTATED, private=private)


def annotated_files(folder: Path) -> dict[str, Path]:
    """The files of a push of an annotated dataset, by path in the repository, without work files.

    Raises:
        OutputError: If the folder is not finished.
        SchemaError: If its data violates the contract of an annotated dataset.
    """
    shards = sorted(folder.glob("data/*.parquet"))
    files = [*shards, folder / "README.md", folder / MANIFEST_NAME]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not shards:
        problem = f"not a finished annotated dataset ({(missing or ['data/*.parquet'])[0]} is missing)"
        advice = f"Let sepo-annotate finish, or run `sepo merge {folder}` first"
        if (folder / "config.json").is_file():
            problem, advice = (
                "neither annotated nor trained by sepo",
                f"Push it with `hf upload REPOSITORY {folder}`",
            )
        raise OutputError(f"{folder}: {problem}. {advice}.")
    check_content(folder, read_manifest(folder, str(folder)))
    for shard in shards:
        _check_shard(shard)
    return sorted_by_path(folder, files)


def _check_shard(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # one at a time: memory stays flat
                validate(file.read_row_group(group))
    except (pa.ArrowException, OSError) as error:
        raise OutputError(f"{path}: cannot be read ({line_of(error)}). Annotate again.") from error
    except SchemaError as error:
        raise SchemaError(f"{path}, row group {group}: {error}") from error
