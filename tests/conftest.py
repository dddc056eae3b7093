"""Fixtures of the end-to-end tests: the installed `job`, run as a user runs it."""

import os
import subprocess

import pytest
from support import JOB, Ended, clean_environment


@pytest.fixture
def job(tmp_path):
    def run(*arguments, code=0, env=None, cwd=tmp_path, stdin=None, timeout=100):
        done = subprocess.run(
            [JOB, *map(os.fsencode, arguments)],
            capture_output=True,
            cwd=cwd,
            env=clean_environment(**(env or {})),
            input=stdin,
            timeout=timeout,
            check=False,
        )
        ended = Ended(done.returncode, done.stdout.decode(), done.stderr)
        assert ended.code == code, (ended.code, ended.out, ended.err.decode()[-4000:])
        return ended

    return run


@pytest.fixture
def processor(tmp_path):
    """Writes a processor's file and returns its name for --processor."""

    def write(text, name="work"):
        path = tmp_path / "processors" / "mine.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return f"{path}:{name}"

    return write


@pytest.fixture
def folder(tmp_path):
    """A folder of small text files."""

    def make(count=20, name="in"):
        path = tmp_path / name
        path.mkdir()
        for number in range(count):
            (path / f"{number:05d}.txt").write_text(f"file {number}\n" * (number % 7))
        return path

    return make
