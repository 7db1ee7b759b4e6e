"""The examples in docstrings of modules that need no model run as written."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    [
        *("sources.preferences", "projection", "selection", "runs.folder", "runs.workers"),
        *("rules.cutoffs", "rules.groups", "rules.shares", "rules.token_filter", "rules.weights"),
        "evaluation.figures",
    ],
)
def test_the_examples_of_the_docstrings_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"sepo_data.{module}"))
    assert results.attempted
    assert not results.failed
