"""The whole path on real files."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from support import SAMPLE, check_conservation, rows


def test_every_file_once_and_counts_equal_those_of_wc(job, tmp_path):
    out = tmp_path / "out"
    ended = job("run", SAMPLE, "--output", out, "--processor", "text", "--shards", "3")
    found = subprocess.run(["find", SAMPLE, "-type", "f"], capture_output=True, check=True, text=True)
    paths = sorted(found.stdout.split("\n")[:-1], key=os.fsencode)
    assert [row["path"] for row in rows(out, "files")] == paths
    check_conservation(out, len(paths))
    for row in rows(out):
        data = Path(row["path"]).read_bytes()
        lines, size = subprocess.run(
            ["wc", "-lc", row["path"]], capture_output=True, check=True, text=True
        ).stdout.split()[:2]
        assert (row["lines"], row["bytes"]) == (int(lines), int(size))
        assert row["words"] == len(data.split())
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
    assert f"{len(paths)} files, {len(paths)} results, 0 failures" in ended.out


def test_the_answer_does_not_depend_on_shards_and_workers(job, tmp_path):
    known = None
    for shards in (1, 3, 7):
        for workers in (1, 2, 5):
            out = tmp_path / f"{shards}-{workers}"
            job("run", SAMPLE, "--output", out, "--shards", str(shards), "--workers", str(workers))
            found = [pq.read_table(out / f"{name}.parquet") for name in ("result", "failures", "summary")]
            known = known or found
            assert all(one.equals(other) for one, other in zip(known, found, strict=True))


def test_more_shards_than_files(job, tmp_path, folder):
    out = tmp_path / "out"
    job("run", folder(3), "--output", out, "--shards", "8")
    check_conservation(out, 3)
    assert len(list((out / "shards").iterdir())) == 8


NAMES = [b"plain", b"with space", b"new\nline", "é€😀".encode(), b"\xff\xfe raw", b".hidden", b"-dash", b"back\\slash"]


def test_names_of_any_bytes_come_back(job, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"x" * number)
    out = tmp_path / "out"
    job("run", folder, "--output", out, "--shards", "2")
    check_conservation(out, len(NAMES))
    plan = pq.read_table(out / "plan.parquet").to_pylist()
    raw = [row["path_raw"] or row["path"].encode() for row in plan]
    assert raw == sorted(os.fsencode(folder) + b"/" + name for name in NAMES)
    for row in plan:
        expected = (row["path_raw"] or row["path"].encode()).decode("utf-8", "backslashreplace")
        assert row["path"] == expected
        assert (row["path_raw"] is None) == ("\\xff" not in row["path"])
    sizes = {row["path"].rpartition("/")[2]: row["bytes"] for row in rows(out)}
    assert sizes["\\xff\\xfe raw"] == 4
    assert sizes["new\nline"] == 2


def test_links_sockets_and_loops(job, tmp_path):
    top = tmp_path / "in"
    (top / "a").mkdir(parents=True)
    (top / "a" / "file").write_text("x")
    (top / "a" / "up").symlink_to(top)
    (top / "b").symlink_to(top / "a")
    (top / "link").symlink_to(top / "a" / "file")
    (top / "broken").symlink_to("nowhere")
    os.mkfifo(top / "fifo")
    out = tmp_path / "out"
    ended = job("run", top, "--output", out)
    names = [row["path"].removeprefix(f"{top}/") for row in rows(out, "files")]
    assert names == ["a/file", "b/file", "link"]
    assert {line["path"].rpartition("/")[2] for line in ended.logs if "left out" in line["event"]} == {
        "up", "broken", "fifo"
    }  # fmt: skip


def test_output_inside_the_input_is_never_an_input(job, tmp_path, folder):
    top = folder(3)
    out = top / "out"
    job("run", top, "--output", out)
    job("plan", top, "--output", out, "--shards", "1")
    check_conservation(out, 3)


def test_the_same_command_again_does_nothing(job, tmp_path, folder):
    top, out = folder(5), tmp_path / "out"
    job("run", top, "--output", out, "--shards", "2")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    (top / "new").write_text("added after the plan")
    ended = job("run", top, "--output", out, "--shards", "2", "--workers", "1")
    assert "nothing to do" in ended.out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_a_run_goes_on_where_shards_are_missing(job, tmp_path, folder):
    top, out = folder(12), tmp_path / "out"
    job("run", top, "--output", out, "--shards", "3")
    before = pq.read_table(out / "result.parquet")
    (out / "shards" / "shard-00001-of-00003.json").unlink()
    ended = job("run", top, "--output", out, "--shards", "3")
    assert len(ended.events("shard finished")) == 1
    assert pq.read_table(out / "result.parquet").equals(before)
    check_conservation(out, 12)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--shards", "4"], "shards: 2 in the plan, 4 now"),
        (["--processor", "digest"], "processor: text in the plan, digest now"),
        (["--option", "sha256=false"], "options"),
        (["--include", "*.txt"], "include"),
    ],
)
def test_other_frozen_values_are_refused(job, tmp_path, folder, changed, named):
    top, out = folder(3), tmp_path / "out"
    job("run", top, "--output", out, "--shards", "2")
    ended = job("run", top, "--output", out, "--shards", "2", *changed, code=2)
    assert named in ended.message
    assert "--replan" in ended.message
    job("run", top, "--output", out, "--shards", "2", *changed, "--replan")
    check_conservation(out, 3)


def test_a_relative_input_is_frozen_with_its_folder(job, tmp_path, folder):
    folder(4)
    out = tmp_path / "out"
    job("plan", "in", "--output", out, "--shards", "1", cwd=tmp_path)
    job("map", "--output", out, cwd="/")
    job("reduce", "--output", out, cwd="/")
    assert [row["path"] for row in rows(out)] == [f"in/{number:05d}.txt" for number in range(4)]
    (tmp_path / "elsewhere").mkdir()
    assert "base" in job("run", "in", "--output", out, code=2, cwd=tmp_path / "elsewhere").message


def test_no_files(job, tmp_path):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    assert "no file found" in job("run", "empty", "--output", out, code=2).message
    job("run", "empty", "--output", out, "--allow-empty", "--shards", "2")
    check_conservation(out, 0)
    assert json.loads((out / "summary.json").read_text())["files"] == 0


def test_names_from_standard_input(job, tmp_path, folder):
    top, out = folder(4), tmp_path / "out"
    names = b"\0".join(os.fsencode(top / f"{number:05d}.txt") for number in (2, 0, 2))
    job("run", "--files-from", "-", "--null", "--output", out, stdin=names)
    assert [Path(row["path"]).name for row in rows(out)] == ["00000.txt", "00002.txt"]


def test_max_failures(job, tmp_path, folder, processor):
    name = processor("def work(file):\n    assert not file.path.endswith('3.txt')\n    return {'v': 1}\n")
    top = folder(10)
    ended = job("run", top, "--output", tmp_path / "a", "--processor", name, code=65)
    assert "1 of 10 files failed" in ended.message
    check_conservation(tmp_path / "a", 10)
    job("run", top, "--output", tmp_path / "a", "--processor", name, "--max-failures", "1")
    job("run", top, "--output", tmp_path / "a", "--processor", name, "--max-failures", "9%", code=65)
    job("run", top, "--output", tmp_path / "a", "--processor", name, "--max-failures", "10%")


def test_fail_fast_publishes_nothing_and_goes_on(job, tmp_path, folder, processor):
    name = processor(
        "import os, time\n"
        "def work(file):\n"
        "    time.sleep(0.01)\n"
        "    assert os.path.exists('repaired')\n"
        "    return {'v': 1}\n"
    )
    top, out = folder(40), tmp_path / "out"
    command = ("run", top, "--output", out, "--processor", name, "--max-failures", "40")
    job(*command, "--fail-fast", "3", code=65)
    assert not (out / "shards").exists()
    assert list((out / "parts").rglob("*.files.parquet"))
    (tmp_path / "repaired").touch()
    job(*command)
    check_conservation(out, 40)
    assert 3 <= len(rows(out, "failures")) < 40


def test_every_option_has_an_environment_variable(job, tmp_path, folder):
    out = tmp_path / "out"
    settings = {"JOB_OUTPUT": str(out), "JOB_SHARDS": "2", "JOB_PROCESSOR": "digest", "JOB_WORKERS": "1"}
    job("run", folder(3), env=settings)
    assert json.loads((out / "summary.json").read_text())["processor"] == "digest"
    for command in ("run", "plan", "map", "reduce"):
        text = job(command, "--help", env={"COLUMNS": "200"}).out
        assert text.count("env var") >= text.count(" --") - 3


def test_help_does_not_import_arrow():
    code = "import sys, job.cli; sys.exit('pyarrow' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
