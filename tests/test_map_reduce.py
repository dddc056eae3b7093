"""One shard a pod, and the reduce that trusts none of them."""

import json
import os
import shutil

import pyarrow.parquet as pq
import pytest
from support import check_conservation, rows


@pytest.fixture
def planned(job, tmp_path, folder):
    out = tmp_path / "out"
    job("plan", folder(30), "--output", out, "--shards", "3")
    return out


@pytest.fixture
def mapped(job, planned):
    for index in range(3):
        job("map", "--output", planned, "--shard-index", str(index))
    return planned


def test_pods_give_what_one_run_gives(job, tmp_path, mapped):
    job("reduce", "--output", mapped)
    check_conservation(mapped, 30)
    job("run", tmp_path / "in", "--output", tmp_path / "one")
    for name in ("result", "summary"):
        one, other = (pq.read_table(out / f"{name}.parquet") for out in (mapped, tmp_path / "one"))
        assert one.equals(other)


def test_the_plan_is_frozen_and_only_the_output_is_needed(job, tmp_path, planned):
    (tmp_path / "in" / "added.txt").write_text("after the plan")
    for index in range(3):
        job("map", env={"JOB_OUTPUT": str(planned), "JOB_COMPLETION_INDEX": str(index)})
    job("reduce", "--output", planned)
    check_conservation(planned, 30)


def test_map_of_a_finished_shard_does_nothing(job, mapped):
    before = sorted(path.name for path in mapped.rglob("*"))
    ended = job("map", "--output", mapped, "--shard-index", "1")
    assert "finished already" in ended.out
    assert sorted(path.name for path in mapped.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "said"),
    [
        ([], {}, 2, "--shard-index"),
        (["--shard-index", "3"], {}, 2, "outside the plan, whose shards are 0 to 2"),
        (["--shard-index", "-1"], {}, 2, "outside the plan"),
        ([], {"CLOUD_RUN_TASK_INDEX": "0", "CLOUD_RUN_TASK_COUNT": "8"}, 2, "8 tasks, but the plan has 3"),
    ],
)
def test_which_shard_must_be_clear(job, planned, arguments, environment, code, said):
    assert said in job("map", "--output", planned, *arguments, env=environment, code=code).message


def test_the_log_says_who_gave_the_index(job, planned):
    ended = job("map", "--output", planned, env={"JOB_COMPLETION_INDEX": "2"})
    assert ended.events("shard")[0]["source"] == "Kubernetes"
    assert ended.events("shard finished")[0]["shard_index"] == 2


def test_no_plan_yet(job, tmp_path):
    for command in (["map"], ["reduce"]):
        assert "no plan" in job(*command, "--output", tmp_path / "none", code=75).message


def test_missing_shards_are_named(job, planned):
    job("map", "--output", planned, "--shard-index", "1")
    assert "2 of 3 shards are missing" in (
        message := job("reduce", "--output", planned, code=75).message
    )
    assert ": 0, 2;" in message
    assert not (planned / "result.parquet").exists()


def test_reduce_waits_no_longer_than_it_must(job, planned):
    assert "missing" in job("reduce", "--output", planned, "--wait", "1.5", code=75).message
    (planned / "attempts" / "shard-00002").mkdir(parents=True)
    record = {"exit_code": 2, "message": "no such thing"}
    (planned / "attempts" / "shard-00002" / "00-x.json").write_text(json.dumps(record))
    message = job("reduce", "--output", planned, "--wait", "60", code=2, timeout=20).message
    assert "shard 2 cannot come" in message
    assert "no such thing" in message


def test_reduce_again_changes_nothing(job, mapped):
    job("reduce", "--output", mapped)
    before = {path: path.stat().st_mtime_ns for path in mapped.rglob("*") if path.is_file()}
    assert "nothing to do" in job("reduce", "--output", mapped).out
    assert before == {path: path.stat().st_mtime_ns for path in mapped.rglob("*") if path.is_file()}


def test_reduce_makes_again_what_is_gone(job, mapped):
    job("reduce", "--output", mapped)
    before = rows(mapped)
    (mapped / "result.parquet").unlink()
    job("reduce", "--output", mapped)
    assert rows(mapped) == before


def _data_file(out, kind, shard=1):
    return next((out / kind).glob(f"shard-{shard:05d}-of-*.parquet"))


@pytest.mark.parametrize("kind", ["results", "failures", "files"])
def test_a_damaged_shard_is_named(job, mapped, kind):
    path = _data_file(mapped, kind)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    message = job("reduce", "--output", mapped, code=74).message
    assert str(path) in message
    assert not (mapped / "result.parquet").exists()


def test_a_missing_data_file_is_named(job, mapped):
    path = _data_file(mapped, "files")
    path.unlink()
    assert path.name in job("reduce", "--output", mapped, code=74).message


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"data": 3}'])
def test_a_damaged_commit_record_is_named(job, mapped, text):
    path = mapped / "shards" / "shard-00001-of-00003.json"
    path.write_text(text)
    assert path.name in job("reduce", "--output", mapped, code=74).message


def test_a_shard_of_another_plan_is_refused(job, tmp_path, mapped, folder):
    other = tmp_path / "other"
    job("run", folder(9, "in2"), "--output", other, "--shards", "3")
    shutil.copy(other / "shards" / "shard-00001-of-00003.json", mapped / "shards")
    message = job("reduce", "--output", mapped, code=74).message
    assert "another plan" in message
    assert "shard-00001" in message


@pytest.mark.parametrize("at", [0.0, 0.01, 0.3, 0.5, 0.8, 0.999])
def test_a_damaged_plan_is_named(job, planned, at):
    path = planned / "plan.parquet"
    data = bytearray(path.read_bytes())
    position = int(at * len(data))
    data[position : position + 8] = bytes(byte ^ 0xFF for byte in data[position : position + 8])
    path.write_bytes(data)
    ended = job("map", "--output", planned, "--shard-index", "0", code=74)
    assert str(path) in ended.message


def test_what_losers_left_is_removed(job, mapped):
    (mapped / "results" / "shard-00001-of-00003.0-loser.parquet").write_bytes(b"x")
    (mapped / "parts" / "shard-00001" / "0-loser").mkdir(parents=True)
    (mapped / "parts" / "shard-00001" / "0-loser" / "000001.files.parquet").write_bytes(b"x")
    job("reduce", "--output", mapped)
    assert not (mapped / "parts").exists()
    assert len(list((mapped / "results").iterdir())) == 3


def test_plan_again(job, tmp_path, planned):
    command = ("plan", tmp_path / "in", "--output", planned, "--shards", "3")
    plan = (planned / "plan.parquet").read_bytes()
    assert "planned already" in job(*command).out
    (tmp_path / "in" / "00007.txt").unlink()
    (tmp_path / "in" / "new.txt").write_text("x")
    os.utime(tmp_path / "in" / "00001.txt", (1, 1))
    message = job(*command, code=2).message
    for word in ("added", "new.txt", "removed", "00007.txt", "changed", "00001.txt"):
        assert word in message
    job(*command, "--if-absent")
    assert (planned / "plan.parquet").read_bytes() == plan
    job(*command[:-1], "4", "--if-absent", code=2)
    job(*command, "--replan")
    assert (planned / "plan.parquet").read_bytes() != plan


def test_dry_run_writes_nothing(job, tmp_path, folder):
    ended = job("plan", folder(3), "--output", tmp_path / "out", "--shards", "2", "--dry-run")
    assert "00002.txt" in ended.out
    assert not (tmp_path / "out").exists()


def test_two_attempts_leave_one_shard(job, planned):
    """The loser of two attempts at one shard, one after the other, withdraws and ends well."""
    job("map", "--output", planned, "--shard-index", "0")
    record = planned / "shards" / "shard-00000-of-00003.json"
    saved = record.read_bytes()
    record.unlink()
    job("map", "--output", planned, "--shard-index", "0")
    assert json.loads(record.read_bytes())["attempt"] != json.loads(saved)["attempt"]
    for index in (1, 2):
        job("map", "--output", planned, "--shard-index", str(index))
    job("reduce", "--output", planned)
    check_conservation(planned, 30)
    assert len(list((planned / "results").iterdir())) == 3
