"""Tests of `sepo-annotate --executor hf-jobs` against a Hub on 127.0.0.1 that runs the Jobs here."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from annotate_process import ROOT, run
from hub_server import OWNER, HubServer
from tiny_pair import pairs, save_pair, write_jsonl

ROWS = 700  # three chunks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def published(hub: HubServer, tmp_path: Path) -> Iterator[list[str]]:
    """Models and data on the Hub, which runs a Job's command as a process of this machine."""
    for name, folder in zip(("oracle", "ref"), save_pair(tmp_path), strict=True):
        hub.add("model", f"me/jobs-{name}", Path(folder))
    data = Path(write_jsonl(tmp_path / "train.jsonl", pairs(ROWS)))
    hub.add("dataset", "me/jobs-prefs", {"train.jsonl": data.read_bytes()})

    def run_job(job: dict[str, Any]) -> int:
        where = job["command"].index("launch_pickled_pipeline")
        command = [
            sys.executable,
            "-m",
            "datatrove.tools.launch_pickled_pipeline",
            *job["command"][where + 1 :],
        ]
        environment = {
            **os.environ,
            **job["environment"],
            **job["secrets"],
            "HF_HOME": str(tmp_path / "job"),
            "OMP_NUM_THREADS": "1",  # as `run` has; sums in another order would give other bits
        }
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode

    hub.run_job = run_job
    yield [
        "--oracle",
        "me/jobs-oracle",
        "--ref",
        "me/jobs-ref",
        "--dataset",
        "me/jobs-prefs",
        "--license",
        "mit",
    ]
    hub.run_job = lambda job: 0
    hub.jobs.clear()


def jobs(repo_id: str, **more: object) -> list[str]:
    fields = {
        "folder": f"hf://datasets/{repo_id}-run",
        "package": "sepo[scale] @ git+https://example.org/sepo",
        "flavor": "a10g-small",
        "poll_interval": 1,
        **more,
    }
    return [part for name, value in fields.items() for part in ("--hf-jobs", f"{name}={value}")]


def test_jobs_score_the_shards_and_their_chunks_come_back(
    tmp_path: Path, hub: HubServer, repo_id: str, published: list[str]
) -> None:
    whole = tmp_path / "whole"
    assert run(*published, "--output", whole).returncode == 0
    output = tmp_path / "out"
    there = ["--output", output, "--executor", "hf-jobs", "--tasks", 3, "--workers", 2, *jobs(repo_id)]
    done = run(*published, *there)
    assert done.returncode == 0, done.stderr
    assert f"annotated {ROWS} of {ROWS} rows" in done.stdout
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    different = [name for name in names if (output / name).read_bytes() != (whole / name).read_bytes()]
    assert not different
    assert len(hub.jobs) == 3
    job = hub.jobs[0]
    assert job["command"][:4] == ["uv", "run", "--with", "sepo[scale] @ git+https://example.org/sepo"]
    assert job["command"][-2:] == [
        "launch_pickled_pipeline", f"hf://datasets/{repo_id}-run/executor.pik",
    ]  # fmt: skip
    assert job["flavor"] == "a10g-small"
    assert job["secrets"] == {"HF_TOKEN": OWNER}
    assert not any(OWNER.encode() in data for data in hub.files(f"{repo_id}-run").values())
    again = run(*published, *there)
    assert "is already complete" in again.stderr
    assert len(hub.jobs) == 3


def test_only_what_is_missing_is_submitted_again(
    tmp_path: Path, hub: HubServer, repo_id: str, published: list[str]
) -> None:
    run_job = hub.run_job
    hub.run_job = lambda job: 1 if job["environment"]["DATATROVE_JOB_ARRAY_INDEX"] == "1" else run_job(job)
    there = ["--executor", "hf-jobs", "--tasks", 3, *jobs(repo_id, max_retries=0)]
    failed = run(*published, "--output", tmp_path / "out", *there)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("Error: 1 of 3 tasks failed (1). Look at the Jobs' logs")
    assert len(hub.jobs) == 3
    hub.run_job = run_job
    done = run(*published, "--output", tmp_path / "out", *there)
    assert done.returncode == 0, done.stderr
    assert len(hub.jobs) == 4


def test_what_a_job_could_not_do_is_refused(
    tmp_path: Path, hub: HubServer, repo_id: str, published: list[str]
) -> None:
    def refusal(*arguments: object, **environment: str) -> str:
        found = run(
            *published, "--output", tmp_path / "no", "--executor", "hf-jobs", *arguments, **environment
        )
        assert found.returncode == 1
        return found.stderr.splitlines()[-1]

    assert "needs --hf-jobs folder=…" in refusal("--tasks", 2)
    assert "gpus=… is none of folder, package, flavor" in refusal("--tasks", 2, *jobs(repo_id, gpus=1))
    assert "is not on the Hub" in refusal("--tasks", 2, *jobs(repo_id, folder="/tmp/x"))
    assert "--tasks must be from 2 to 3, the chunks of 256 rows, got 4" in refusal(
        "--tasks", 4, *jobs(repo_id)
    )
    assert "--dataset" in refusal(
        *("--tasks", 2, *jobs(repo_id)),
        *("--dataset", tmp_path / "train.jsonl", "--output", tmp_path / "other"),
    )
    assert not hub.jobs
