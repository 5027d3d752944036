"""Processes take turns."""

import os
import subprocess
import sys
import threading
import time

import pytest
from conftest import WITHOUT_ESTIMATORS

import sktransfer.turns
from sktransfer.options import count_gpu_processes
from sktransfer.turns import take_turn

HOLD = f"""{WITHOUT_ESTIMATORS}
from sktransfer.turns import take_turn
with take_turn("gpu-test"):
    print("taken", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder():
    """Another process that holds the turn until it is told to let go."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("end", ["let go", "kill"])
def test_the_second_process_waits_until_the_first_lets_go_or_dies(holder, end):
    asked, order = threading.Event(), []

    def release():
        assert asked.wait(10)
        order.append("released")
        holder.kill() if end == "kill" else holder.communicate("\n")

    thread = threading.Thread(target=release)
    thread.start()
    with take_turn("gpu-test", on_wait=asked.set) as waited:
        order.append("taken")
    thread.join()
    assert (waited, order) == (True, ["released", "taken"])


def test_more_processes_are_let_in_on_request_and_other_names_are_other_turns(holder):
    with take_turn("gpu-test", 2) as more, take_turn("gpu-other") as other:
        assert (more, other) == (False, False)


def test_threads_of_a_process_hold_it_together():
    with take_turn("gpu-test") as first:
        with take_turn("gpu-test") as second:
            assert (first, second) == (False, False)
        assert "gpu-test" in sktransfer.turns._taken
    assert sktransfer.turns._taken == {}


def test_nobody_waits_where_no_lock_can_be_taken(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKTRANSFER_CACHE_DIR", str(tmp_path / "file"))
    started = time.monotonic()
    with take_turn("gpu-test") as waited:
        assert not waited
    assert time.monotonic() - started < 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_hold_its_parents_turn():
    with take_turn("gpu-test"):
        child = os.fork()
        if child == 0:
            os._exit(0 if sktransfer.turns._taken == {} else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_number_of_processes_is_read_from_the_environment(monkeypatch):
    assert count_gpu_processes() == 1
    monkeypatch.setenv("SKTRANSFER_GPU_PROCESSES", "3")
    assert count_gpu_processes() == 3
    monkeypatch.setenv("SKTRANSFER_GPU_PROCESSES", "none")
    with pytest.raises(ValueError, match="SKTRANSFER_GPU_PROCESSES must be an integer >= 1. Got 'none' instead"):
        count_gpu_processes()
