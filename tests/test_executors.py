"""Tests of `sepo-annotate --executor`: datatrove's tasks and completion markers, and a fake SLURM."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from annotate_process import ROOT, run
from click.testing import CliRunner, Result
from tiny_pair import pairs, save_pair, write_jsonl

from cli.annotate import main

ROWS = 700  # three chunks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    oracle, ref = save_pair(folder)
    data = write_jsonl(folder / "prefs.jsonl", pairs(ROWS))
    return ["--oracle", oracle, "--ref", ref, "--dataset", data, "--license", "mit"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, arguments: list[str]) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    done = run(*arguments, "--output", output)
    assert done.returncode == 0, done.stderr
    return output


def assert_same_files(ours: Path, theirs: Path) -> None:
    names = [path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file()) == sorted(names)
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_tasks_on_this_machine_make_the_bytes_of_one_run(
    tmp_path: Path, arguments: list[str], whole: Path
) -> None:
    output = tmp_path / "out"
    here = ["--output", output, "--executor", "local", "--tasks", 3, "--workers", 2]
    done = run(*arguments, *here, CUDA_VISIBLE_DEVICES="3,5")
    assert done.returncode == 0, done.stderr
    assert f"annotated {ROWS} of {ROWS} rows" in done.stdout
    logs = "".join(path.read_text() for path in (tmp_path / "out-tasks" / "logs").iterdir())
    assert "process 0 of this machine computes on GPU 3" in logs
    assert "process 1 of this machine computes on GPU 5" in logs
    assert_same_files(output, whole)
    again = run(*arguments, *here)
    assert "is already complete" in again.stderr
    assert "Launching pipeline" not in again.stderr


def test_a_task_that_failed_runs_again_and_no_other(
    tmp_path: Path, arguments: list[str], whole: Path
) -> None:
    output = tmp_path / "out"
    here = ["--output", output, "--executor", "local", "--tasks", 3, "--workers", 1]
    obstacle = output / "_work" / "train-000000256-000000512.rows" / "in the way"
    obstacle.mkdir(parents=True)
    failed = run(*arguments, *here)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("Error: 1 of 3 tasks failed (1). Their logs are in ")
    logs = tmp_path / "out-tasks" / "logs"
    assert "cannot be written (Is a directory)" in (logs / "task_00001.log").read_text()
    assert "shard 1/3 ended with exit code 1" in (logs / "task_00001.log").read_text()
    assert "Traceback" not in failed.stderr
    before = {path.name: path.stat().st_mtime_ns for path in logs.iterdir()}
    obstacle.rmdir()
    obstacle.parent.rmdir()
    done = run(*arguments, *here)
    assert done.returncode == 0, done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in logs.iterdir()}
    assert [name for name in sorted(after) if after[name] != before[name]] == ["task_00001.log"]
    assert_same_files(output, whole)


def test_a_mark_without_its_chunk_is_taken_back(tmp_path: Path, arguments: list[str], whole: Path) -> None:
    output = tmp_path / "out"
    parts = [run(*arguments, "--output", output, "--shard", f"{i}/3") for i in (0, 1)]
    assert [part.returncode for part in parts] == [0, 0]
    marks = tmp_path / "out-tasks" / "completions"
    marks.mkdir(parents=True)
    for rank in (0, 2):  # of 1 the mark is missing, of 2 the chunk
        (marks / f"{rank:05d}").touch()
    chunk = output / "_work" / "train-000000000-000000256.rows"
    chunk.write_bytes(chunk.read_bytes()[:-1])  # and that of 0 is damaged
    done = run(*arguments, "--output", output, "--executor", "local", "--tasks", 3, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "Skipping 1 already completed tasks" in done.stderr
    assert_same_files(output, whole)


def test_no_task_survives_a_killed_command(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "sepo_cli.annotate", *arguments, "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--executor", "local", "--tasks", "3", "--workers", "2"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )

    def tasks() -> list[psutil.Process]:
        config = str(tmp_path / "out-tasks")
        found = psutil.process_iter(["cmdline"])
        return [one for one in found if any(config in word for word in one.info["cmdline"] or [])]

    wait_until(lambda: len(tasks()) == 2)
    process.kill()
    process.wait()
    wait_until(lambda: not tasks())


def test_a_ray_worker_that_is_killed_is_replaced_and_nothing_is_lost(
    tmp_path: Path, arguments: list[str], whole: Path
) -> None:
    pytest.importorskip("ray")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "sepo_cli.annotate", *arguments, "--output", str(output)]
    process = subprocess.Popen(
        [*command, "--executor", "ray", "--tasks", "3", "--workers", "2"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def shards() -> list[psutil.Process]:
        config = str(tmp_path / "out-tasks" / "annotate.yaml")
        return [one for one in psutil.process_iter(["cmdline"]) if config in (one.info["cmdline"] or [])]

    wait_until(lambda: bool(shards()))
    first = shards()[0]
    pool = first.parent()
    assert pool is not None
    actor = pool.parent()
    assert actor is not None
    assert "ray::" in " ".join(actor.cmdline())
    actor.kill()
    wait_until(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr
    assert "failed with RayActorError" in stderr
    assert f"annotated {ROWS} of {ROWS} rows" in stdout
    assert_same_files(output, whole)


def test_a_task_that_failed_on_ray_is_reported_and_runs_again(
    tmp_path: Path, arguments: list[str], whole: Path
) -> None:
    pytest.importorskip("ray")
    output = tmp_path / "out"
    there = ["--output", output, "--executor", "ray", "--tasks", 3, "--workers", 2]
    obstacle = output / "_work" / "train-000000256-000000512.rows" / "in the way"
    obstacle.mkdir(parents=True)
    failed = run(*arguments, *there)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("Error: 1 of 3 tasks failed (1). Their logs are in ")
    log = (tmp_path / "out-tasks" / "logs" / "task_00001.log").read_text()
    assert "shard 1/3 ended with exit code 1" in log
    obstacle.rmdir()
    obstacle.parent.rmdir()
    done = run(*arguments, *there)
    assert done.returncode == 0, done.stderr
    assert "Will run pipeline on 1 incomplete ranks out of 3 total" in done.stderr
    assert_same_files(output, whole)
    wrong = run(*arguments, *there, "--output", tmp_path / "new", "--ray", "gpus=1")
    assert wrong.stderr.splitlines()[-1] == (
        "Error: --ray gpus=… is none of cpus_per_task, gpus_per_task, mem_per_cpu_gb."
    )


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    raise TimeoutError


def test_a_run_that_only_lacks_its_last_step_takes_it_here(
    tmp_path: Path, arguments: list[str], whole: Path, cluster: Path
) -> None:
    output = tmp_path / "out"
    assert run(*arguments, "--output", output, "--shard", "0/2").returncode == 0
    dying = [
        "import sepo_data.annotation",
        "sepo_data.annotation.merge_run = None",
        "from cli.annotate import main",
        "main()",
    ]
    command = [sys.executable, "-c", "; ".join(dying), *arguments, "--output", str(output), "--shard", "1/2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    died = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "'NoneType' object is not callable" in died.stderr
    slurm = ["--executor", "slurm", "--tasks", 2, "--slurm", "partition=gpu", "--slurm", "time=1:00"]
    done = run(*arguments, "--output", output, *slurm, PATH=f"{cluster}:{os.environ['PATH']}")
    assert f"annotated {ROWS} of {ROWS} rows" in done.stdout
    assert_same_files(output, whole)


SBATCH = """#!/bin/sh
for script; do :; done  # the last argument
cp "$script" {folder}/submitted.slurm
echo "$@" > {folder}/arguments
echo "Submitted batch job 4711"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do [ "$1" = -n ] && shift; shift; done  # options
exec "$@"
"""
SCONTROL = "#!/bin/sh\necho this-node\n"


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with the commands of SLURM: sbatch keeps the script, and the test runs it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(script.replace("{folder}", str(tmp_path)))
        (folder / name).chmod(stat.S_IRWXU)
    return folder


def test_a_slurm_job_is_submitted_and_its_last_task_makes_the_dataset(
    tmp_path: Path, arguments: list[str], whole: Path, cluster: Path
) -> None:
    output = tmp_path / "out"
    path = f"{cluster}:{os.environ['PATH']}"
    submitted = run(
        *arguments, "--output", output, "--executor", "slurm", "--tasks", 3, "--workers", 2,
        *("--slurm", "partition=gpu", "--slurm", "time=2:00:00", "--slurm", "account=me"),
        *("--slurm", "cpus-per-task=8"),
        PATH=path,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    assert submitted.stdout.startswith("submitted job 4711 (3 tasks, ")
    script = (tmp_path / "submitted.slurm").read_text()
    directives = [line.removeprefix("#SBATCH --") for line in script.splitlines() if "#SBATCH" in line]
    for expected in (
        "array=0-2%2", "partition=gpu", "time=2:00:00", "account=me", "cpus-per-task=8", "gpus=1",
        "job-name=sepo", "requeue",
    ):  # fmt: skip
        assert expected in directives
    assert not [line for line in directives if line.startswith("qos")]
    assert f'export PATH="{Path(sys.executable).parent}:$PATH"' in script
    assert "srun  -l -n 1 launch_pickled_pipeline" in script
    assert "HF_TOKEN" not in script
    for task in (2, 0, 1):
        done = subprocess.run(
            ["sh", tmp_path / "submitted.slurm"],
            env={
                **os.environ,
                "PATH": path,
                "OMP_NUM_THREADS": "1",
                "SLURM_ARRAY_TASK_ID": str(task),
                "SLURM_NODELIST": "this-node",
                "RUN_OFFSET": "0",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert_same_files(output, whole)


def test_slurm_needs_a_partition_and_a_time(tmp_path: Path, arguments: list[str], cluster: Path) -> None:
    slurm = ["--output", tmp_path / "out", "--executor", "slurm", "--tasks", 2, "--slurm", "partition=gpu"]
    found = run(*arguments, *slurm)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == "Error: --executor slurm needs --slurm time=…, as sbatch does."
    twice = run(*arguments, *slurm, "--slurm", "time=1:00", "--slurm", "workers=4")
    assert twice.stderr.splitlines()[-1] == "Error: --slurm workers=… is --workers here."
    without = run(*arguments, *slurm, "--slurm", "time=1:00", PATH="/usr/bin:/bin")
    assert without.returncode == 1
    assert "Error: sbatch failed" in without.stderr


def invoke(arguments: Sequence[Any]) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", 2], "--tasks and --workers need --executor."),
        (["--slurm", "time=1"], "--slurm needs --executor slurm."),
        (["--executor", "local", "--ray", "gpus_per_task=1"], "--ray needs --executor ray."),
        (["--executor", "ray"], "--executor ray needs --tasks."),
        (["--executor", "local", "--shard", "0/2"], "--shard is one part, and --executor runs all of them."),
        (["--executor", "slurm"], "--executor slurm needs --tasks."),
        (["--executor", "slurm", "--tasks", 2, "--slurm", "fast"], "'fast' is not field=value"),
        (["--shard", "2/2"], "'2/2' is not i/n with i from 0 to n-1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    arguments: list[str], options: list[Any], message: str
) -> None:
    found = invoke([*arguments, *options])
    assert found.exit_code == 2
    assert message in found.stderr


@pytest.mark.parametrize(
    "launcher",
    [
        ["torchrun", "--nproc-per-node", "2", "--no-python"],
        ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--no_python"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_the_processes_of_a_launcher_share_a_run(
    tmp_path: Path, arguments: list[str], whole: Path, launcher: list[str]
) -> None:
    scripts = Path(sys.executable).parent
    command = [scripts / launcher[0], *launcher[1:], scripts / "sepo-annotate", *arguments]
    done = subprocess.run(
        [*map(str, command), "--output", tmp_path / "out", "--shard", "auto"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "this shard is done; " in done.stdout + done.stderr  # the first to finish left chunks to the other
    assert_same_files(tmp_path / "out", whole)
