"""Everything that can happen to a run on rented machines, done to real processes at random moments.

Afterwards the same command ends in the same bytes as an undisturbed run, or says in one line
why not. ``make torture`` kills a thousand times, CI a hundred (``SEPO_TORTURE_KILLS``).
"""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tiny_pair import pairs, save_pair, write_jsonl
from torture_worker import CHUNK_ROWS, work

KILLS = int(os.environ.get("SEPO_TORTURE_KILLS", "100"))
ROWS = 240
CHUNKS = ROWS // CHUNK_ROWS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 * 60 * 6)]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@dataclass
class Cluster:
    """Starts processes of a run, in any folder, and has the output of an undisturbed run."""

    arguments: list[str]
    log: Path
    whole: dict[str, bytes] = field(default_factory=dict)
    seconds: float = float("inf")

    def start(self, output: Path, *options: str, **kwargs: Any) -> ForkServerProcess:
        context = multiprocessing.get_context("forkserver")
        process = context.Process(
            target=work,
            args=([*self.arguments, "--output", str(output), *options], str(self.log)),
            kwargs=kwargs,
        )
        process.start()
        return process

    def run(self, output: Path, *options: str, **kwargs: Any) -> int:
        """Exit code of one process."""
        process = self.start(output, *options, **kwargs)
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    def last_line(self) -> str:
        return self.log.read_text().splitlines()[-1]

    def assert_whole(self, output: Path) -> None:
        assert "Traceback" not in self.log.read_text()
        assert contents(output).keys() == self.whole.keys()
        assert contents(output) == self.whole
        (path,) = (output / "data").iterdir()
        assert pq.read_table(path)["id"].to_pylist() == list(range(ROWS))

    def finish(self, output: Path) -> None:
        """Run the same command undisturbed; the output has the same bytes as always."""
        assert self.run(output) == 0, self.log.read_text()
        self.assert_whole(output)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    multiprocessing.set_forkserver_preload(["torture_worker"])
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # Python 3.11 does not tell the fork server
    folder = tmp_path_factory.mktemp("cluster")
    oracle, ref = save_pair(folder)
    data = write_jsonl(folder / "prefs.jsonl", pairs(ROWS))
    cluster = Cluster(
        ["--oracle", oracle, "--ref", ref, "--dataset", data, "--license", "mit"], folder / "log"
    )
    for name in ("first", "second", "whole"):  # the first process waits for what all others find loaded
        began = time.monotonic()
        assert cluster.run(folder / name) == 0, cluster.log.read_text()
        cluster.seconds = min(cluster.seconds, time.monotonic() - began)
    cluster.whole = contents(folder / "whole")
    return cluster


def killed_at_random(processes: Sequence[ForkServerProcess], seconds: float, rng: random.Random) -> int:
    """Let processes run for random times and kill them; return how many were still alive."""
    began, kills = time.monotonic(), 0
    moments = sorted((rng.uniform(0, seconds), number) for number in range(len(processes)))
    for moment, number in moments:
        processes[number].join(max(0.0, began + moment - time.monotonic()))
        if processes[number].is_alive():
            processes[number].kill()
            kills += 1
    for process in processes:
        process.join()
    return kills


WORKERS: list[list[list[str]]] = [
    [[]],
    [["--sequential"]],
    [[], []],  # two at the same chunks
    [["--sequential"], ["--sequential"]],
    [["--shard", "0/2"], []],
    [["--shard", "1/2"], ["--shard", "0/3"], ["--shard", "1/3"]],  # together all chunks, some twice
]


def test_killed_at_random_moments_no_row_is_lost_or_doubled(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    kills = finished = 0
    while kills < KILLS:
        output, workers = tmp_path / f"out-{finished}", WORKERS[finished % len(WORKERS)]
        while not (output / "sepo_manifest.json").exists() and kills < KILLS:
            processes = [cluster.start(output, *options) for options in workers]
            kills += killed_at_random(processes, cluster.seconds, rng)
            assert {process.exitcode for process in processes} <= {0, -signal.SIGKILL}, cluster.last_line()
        cluster.finish(output)
        finished += 1
    with capsys.disabled():
        print(f"\n{kills:,} kills in {finished:,} runs of {ROWS} rows: no row lost, none doubled")


def test_told_to_stop_it_finishes_its_chunk_and_goes_on_later(cluster: Cluster, tmp_path: Path) -> None:
    rng = random.Random(1)
    for number in range(10):
        output = tmp_path / f"out-{number}"
        process = cluster.start(output)
        process.join(rng.uniform(0.2, 1.0) * cluster.seconds)
        if process.is_alive():
            process.terminate()
        process.join()
        # before it listens, and after its last chunk, the signal does what it does to any process
        assert process.exitcode in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        if process.exitcode == 128 + signal.SIGTERM:
            assert not list(output.rglob("*.tmp.*"))
            assert list(output.rglob("*.rows"))
        cluster.finish(output)


def test_jumps_of_the_clock_change_nothing(cluster: Cluster, tmp_path: Path) -> None:
    rng = random.Random(2)
    for number in range(5):
        output = tmp_path / f"out-{number}"
        killed_at_random([cluster.start(output, jumping_clock=True)], cluster.seconds, rng)
        for path in output.rglob("*"):
            os.utime(path, (rng.uniform(0, 4e9), rng.uniform(0, 4e9)))
        assert cluster.run(output, jumping_clock=True) == 0, cluster.last_line()
        cluster.assert_whole(output)


def killed_midway(cluster: Cluster, output: Path, chunks: int) -> list[Path]:
    """Kill a run after this many chunks; return the chunks that it leaves."""
    while True:
        process = cluster.start(output)
        while process.is_alive() and len(list(output.rglob("*.rows"))) < chunks:
            time.sleep(0.001)
        process.kill()
        process.join()
        if not (output / "sepo_manifest.json").exists():
            return sorted(output.rglob("*.rows"))
        shutil.rmtree(output)  # it was faster than we were


def damage(path: Path, how: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: rng.randrange(len(content))]
    elif how == "flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "zeroed":
        content = bytearray(len(content))
    else:
        content += b"more"
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "flipped", "zeroed", "appended"])
def test_a_chunk_that_was_damaged_since_is_made_anew(cluster: Cluster, tmp_path: Path, how: str) -> None:
    rng = random.Random(how)
    for number in range(8):
        output = tmp_path / f"out-{number}"
        chunks = killed_midway(cluster, output, 1 + rng.randrange(CHUNKS // 2))
        for path in rng.sample(chunks, k=1 + rng.randrange(len(chunks))):
            damage(path, how, rng)
        cluster.finish(output)


def test_a_chunk_in_the_place_of_another_is_made_anew(cluster: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first, second, *_ = killed_midway(cluster, output, 2)
    second.write_bytes(first.read_bytes())
    cluster.finish(output)


@contextlib.contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A separate disk in memory; skips without the right to mount one."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, options: str) -> bool:
    done = subprocess.run(["mount", "-o", f"remount,{options}", place], check=False, capture_output=True)
    return done.returncode == 0


def test_a_full_disk_is_one_line_and_with_room_it_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    room = sum(map(len, cluster.whole.values())) // 1000
    rng = random.Random(4)
    full = 0
    for number in range(12):
        with small_disk(tmp_path / f"disk-{number}", rng.randrange(4, 3 * room)) as disk:
            output = disk / "out"
            while (code := cluster.run(output)) != 0:
                assert code == 1
                assert "cannot be written (No space left on device). Make room or" in cluster.last_line()
                assert not list(disk.rglob("*.tmp.*"))
                full += 1
                if rng.random() < 0.5:
                    killed_at_random([cluster.start(output)], cluster.seconds, rng)
                remount(disk, f"size={rng.randrange(room, 10 * room)}k")
            cluster.assert_whole(output)
    assert full >= 6


def test_a_disk_that_turns_read_only_is_one_line_and_later_it_goes_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    rng = random.Random(5)
    refused = 0
    for number in range(8):
        with small_disk(tmp_path / f"disk-{number}", 100_000) as disk:
            output = disk / "out"
            process = cluster.start(output)
            process.join(rng.uniform(0, cluster.seconds))
            while process.is_alive() and not remount(disk, "ro"):
                time.sleep(0.001)  # not while a file is open for writing
            process.join()
            if process.exitcode:
                assert process.exitcode == 1
                assert "cannot be written (Read-only file system)" in cluster.last_line()
                assert cluster.run(output) == 1  # and so it does from the start
                refused += 1
            remount(disk, "rw")
            cluster.finish(output)
    assert refused >= 4


def test_of_two_runs_in_one_folder_one_is_refused_and_the_other_is_whole(
    cluster: Cluster, tmp_path: Path
) -> None:
    rng = random.Random(6)
    other = ["--ratio", "0.2"]
    assert cluster.run(tmp_path / "other", *other) == 0
    wholes = {(): cluster.whole, tuple(other): contents(tmp_path / "other")}
    won = set()
    for number in range(10):
        output = tmp_path / f"out-{number}"
        both = [(), tuple(other)]
        rng.shuffle(both)
        processes = [cluster.start(output, *options) for options in both]
        for process in processes:
            process.join()
        codes = {options: process.exitcode for options, process in zip(both, processes, strict=True)}
        assert sorted(codes.values()) == [0, 1]  # type: ignore[type-var]
        (winner,) = [options for options, code in codes.items() if code == 0]
        won.add(winner)
        assert contents(output) == wholes[winner]
        (loser,) = codes.keys() - {winner}
        assert cluster.run(output, *loser) == 1
        assert "was made with --chosen-ratio" in cluster.last_line()
        assert contents(output) == wholes[winner]
