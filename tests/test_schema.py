"""Tests of the contract: a good table passes, and every way to break it is named with row and column."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from annotated import annotated_table, random_table

from sepo_data import SchemaError
from sepo_data.reasons import Reason
from sepo_data.schema import check_version, validate


def test_a_table_that_keeps_the_contract_passes() -> None:
    validate(annotated_table())
    validate(random_table(np.random.default_rng(0), 2500))
    validate(datasets.DatasetDict({"train": datasets.Dataset(annotated_table())}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen_token_start": [0]}, 'row 1, column "chosen_token_end": is not as long as token_start'),
        ({"chosen_token_mask": [True]}, 'row 1, column "chosen_token_mask": is not as long'),
        ({"chosen_token_start": [1, 1]}, 'row 1, column "chosen_token_start": does not begin at 0'),
        ({"rejected_token_start": [0, 2, 1]}, 'row 1, column "rejected_token_start": goes backwards'),
        ({"rejected_token_end": [2, 1, 3]}, 'row 1, column "rejected_token_end": goes backwards'),
        (
            {"rejected_token_start": [0, 1, 1], "rejected_token_end": [1, 1, 3]},
            'row 1, column "rejected_token_end": is not after',
        ),
        ({"rejected_token_start": [0, 1, 3]}, 'row 1, column "rejected_token_start": leaves a gap'),
        ({"chosen_token_end": [1, 3]}, 'row 1, column "chosen_token_end": lies after'),
        ({"chosen": "abc"}, 'row 1, column "chosen_token_end": stops before'),
        (
            {"chosen_token_rewards": [float("nan"), 1.0]},
            'row 1, column "chosen_token_rewards": is not finite',
        ),
        ({"chosen_eos_reward": float("inf")}, 'row 1, column "chosen_eos_reward": is not finite'),
        ({"chosen_eos_mask": None}, 'row 1, column "chosen_eos_mask": must be null where'),
        ({"chosen_token_mask": [False, False]}, 'row 1, column "chosen_token_mask": selects nothing'),
        ({"rejected_reward": 7.0}, 'row 1, column "rejected_reward": is not the sum'),
        ({"rejected_reward": None}, 'row 1, column "rejected_reward": is not the sum'),
        ({"chosen_token_mask": [True, None]}, 'column "chosen_token_mask": holds nulls'),
        ({"chosen_token_start": None}, 'column "chosen_token_start": holds nulls'),
        ({"chosen": None}, 'column "chosen": holds nulls'),
        ({"prompt": None}, 'column "prompt": holds nulls'),
    ],
)
def test_a_broken_row_is_named_with_its_column(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError) as raised:
        validate(annotated_table(**changes))
    assert message in str(raised.value)


def test_row_numbers_count_through_batches() -> None:
    good, bad = random_table(np.random.default_rng(0), 1500), annotated_table(rejected_reward=7.0)
    with pytest.raises(SchemaError, match="row 1501,"):
        validate(pa.concat_tables([good, bad]))


def test_missing_and_mistyped_columns_are_named() -> None:
    with pytest.raises(SchemaError, match='column "chosen_token_mask" is missing'):
        validate(annotated_table().drop_columns("chosen_token_mask"))
    with pytest.raises(SchemaError, match='column "prompt" is missing'):
        validate(annotated_table().drop_columns("prompt"))
    table = annotated_table()
    wide = table.set_column(0, "chosen_reward", table["chosen_reward"].cast(pa.float64()))
    with pytest.raises(SchemaError, match='column "chosen_reward" is double, it must be float'):
        validate(wide)


def test_stored_logps_must_give_the_rewards() -> None:
    table = annotated_table()
    kind = pa.list_(pa.float32())
    for side, rewards in (("chosen", [0.5] * 2), ("rejected", [-0.25] * 3)):
        zeros = [[0.0] * len(rewards)] * 4
        table = table.append_column(f"{side}_token_oracle_logps", pa.array([rewards] * 4, kind))
        table = table.append_column(f"{side}_token_ref_logps", pa.array(zeros, kind))
    validate(table)
    index = table.schema.get_field_index("rejected_token_ref_logps")
    wrong = table.set_column(index, "rejected_token_ref_logps", pa.array([[0.0] * 3] * 3 + [[0.1] * 3], kind))
    with pytest.raises(SchemaError, match='row 3, column "rejected_token_rewards": is not oracle minus ref'):
        validate(wrong)
    short = table.set_column(index, "rejected_token_ref_logps", pa.array([[0.0]] * 4, kind))
    with pytest.raises(SchemaError, match='row 0, column "rejected_token_ref_logps": is not as long'):
        validate(short)


def test_an_unknown_major_version_is_refused_and_a_later_minor_one_is_read() -> None:
    check_version("1.7")
    with pytest.raises(SchemaError, match=r"schema version 2\.0, this sepo reads 1\.1\. Upgrade"):
        check_version("2.0")


def test_the_page_of_the_format_explains_every_reason() -> None:
    page = (Path(__file__).parent.parent / "docs" / "dataset_format.md").read_text("utf-8")
    words = " ".join(page.split())
    assert [reason for reason in Reason if f"*{reason}*" not in words] == []
