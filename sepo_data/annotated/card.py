"""The dataset card: YAML that the Hub accepts, and a page about how the dataset was made.

Licence and language are carried over from the source's card, never invented. The
short facts are in the custom ``sepo:`` block, all of them in the manifest.
"""

import jinja2
import yaml

from ..errors import visible
from ..files import text_sha256
from .manifest import Manifest
from .precision import compute_dtype

CARRIED_OVER = ("license", "license_name", "license_link", "language")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def render_card(manifest: Manifest) -> str:
    """The README.md of an annotated dataset.

    Args:
        manifest: The dataset's.
    """
    header = yaml_header(_metadata(manifest))
    page = markdown_templates("sepo_data.annotated").get_template("dataset_card.md.j2")
    return f"---\n{header}---\n\n" + page.render(
        m=manifest,
        health=manifest.health,
        precision=manifest.precision,
        compute_dtype=compute_dtype(manifest.scoring.dtype),
        warnings=manifest.warnings(),
    )


def markdown_templates(
    package: str, undefined: type[jinja2.Undefined] = jinja2.StrictUndefined
) -> jinja2.Environment:
    """The environment of a package's card templates.

    Args:
        package: Where the templates are.
        undefined: How to handle a name that is not given.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        undefined=undefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown: names pass through `code`, and no text of a row is ever rendered
    )
    environment.filters["code"] = code
    return environment


def yaml_header(metadata: dict[str, object]) -> str:
    """The YAML of a card, in readable style where that is exact: it would turn U+0085 into a blank."""
    readable = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)
    return readable if yaml.safe_load(readable) == metadata else yaml.safe_dump(metadata, sort_keys=False)


def code(text: object) -> str:
    """A one-line code span that is safe in a table cell, whatever its content.

    Example:
        >>> code("a|`b`")
        "`a¦'b'`"
    """
    shown = visible(" ".join(str(text).split())).replace("`", "'").replace("|", "¦")
    return f"`{shown or ' '}`"


def _metadata(manifest: Manifest) -> dict[str, object]:
    source, scored = manifest.source, manifest.scoring.source
    gate = {key: value for key, value in source.card.items() if key.startswith("extra_gated_")}
    return {
        **{key: source.card[key] for key in CARRIED_OVER if key in source.card},
        "pretty_name": f"{source.name.split('/')[-1]} with token rewards (SePO)",
        "annotations_creators": ["machine-generated"],
        **({"source_datasets": [source.name]} if source.on_hub else {}),
        "size_categories": [_size_category(manifest.counts.annotated)],
        "task_categories": ["text-generation"],
        "tags": ["sepo", "preference", "dpo", "token-level-rewards", "trl"],
        "configs": [
            {
                "config_name": "default",
                # `datasets` caches a local folder under its name and this entry: without something from the
                # content it would show the rows of an earlier dataset in a folder of the same name
                "description": f"sha256 of the data files' sha256: {_content_hash(manifest)}",
                "data_files": [{"split": scored.split, "path": f"data/{scored.split}-*.parquet"}],
            }
        ],
        "sepo": {
            "schema_version": manifest.schema_version,
            "fingerprint": manifest.fingerprint,
            "source": f"{source.name}@{scored.revision}",
            "oracle": f"{manifest.oracle.name}@{manifest.oracle.revision}",
            "ref": f"{manifest.ref.name}@{manifest.ref.revision}",
            "selection": manifest.selection.as_dict(),
            "reward_accuracy": round(manifest.health.accuracy, 4),
        },
        **gate,
    }


def _content_hash(manifest: Manifest) -> str:
    return text_sha256("".join(shard.sha256 for shard in manifest.shards))


def _size_category(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "1M<n<10M")
