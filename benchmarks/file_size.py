"""Bytes per token of an annotated dataset, by column: the parquet layout of sepo against plain zstd.

python benchmarks/file_size.py annotated
"""

import io
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sepo_data.schema import SIDES


def column_bytes(metadata: pq.FileMetaData) -> Counter[str]:
    """Compressed bytes of each top-level column."""
    sizes: Counter[str] = Counter()
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            column = metadata.row_group(group).column(i)
            sizes[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    return sizes


def main(folder: Path) -> None:
    """Print the table for one annotated dataset."""
    ours: Counter[str] = Counter()
    plain: Counter[str] = Counter()
    tokens = 0
    for path in sorted(folder.glob("data/*.parquet")):
        ours += column_bytes(pq.read_metadata(path))
        table = pq.read_table(path)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", row_group_size=1000)
        plain += column_bytes(pq.read_metadata(pa.BufferReader(sink.getvalue())))
        tokens += sum(len(row) for side in SIDES for row in table[f"{side}_token_start"].to_pylist())
    print(f"{folder.name}: {tokens:,} tokens, bytes per token")
    print(f"{'column':28} {'sepo':>6} {'plain zstd':>11}")
    kinds = (
        "token_start",
        "token_end",
        "token_rewards",
        "token_mask",
        "token_oracle_logps",
        "token_ref_logps",
    )
    for kind in (kind for kind in kinds if f"chosen_{kind}" in ours):
        own, other = (sum(sizes[f"{side}_{kind}"] for side in SIDES) / tokens for sizes in (ours, plain))
        print(f"{kind:28} {own:6.2f} {other:11.2f}")
    text = sum(size for name, size in ours.items() if "_token_" not in name) / tokens
    print(f"{'texts and scalars':28} {text:6.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
