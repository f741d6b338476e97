"""Requests to stop are noted, whoever makes them, and the signals are given back."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from genre_dist.training.stopping import PREEMPTED, SIGNALS, Stopped, StopRequest


@pytest.fixture
def stop(tmp_path: Path) -> Iterator[StopRequest]:
    with StopRequest(tmp_path) as request:
        yield request


def test_nobody_asked(stop: StopRequest) -> None:
    assert not stop.requested()
    assert stop.reason is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_and_does_not_interrupt(stop: StopRequest, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    assert stop.requested()
    assert stop.reason == number.name
    assert stop.requested()  # and stays noted


def test_a_stop_file_in_the_runs_folder_is_a_request(stop: StopRequest, tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    assert stop.requested()
    assert str(tmp_path / "STOP") in str(stop.reason)


def test_an_old_stop_file_is_removed_and_a_new_one_is_not(tmp_path: Path) -> None:
    for old in (True, False):
        (tmp_path / "STOP").unlink(missing_ok=True)
        if old:
            (tmp_path / "STOP").touch()
        with StopRequest(tmp_path) as stop:
            (tmp_path / "STOP").touch()
            stop.forget_left_over()
        assert stop.interrupted() != old


def test_only_a_second_ctrl_c_interrupts_at_once(stop: StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)  # a scheduler may say it again
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_time_budget_is_a_request_once_it_is_spent(tmp_path: Path) -> None:
    now = 1000.0
    with StopRequest(tmp_path, max_minutes=1.5, clock=lambda: now) as stop:
        now = 1089.9
        assert not stop.requested()
        now = 1090.0
        assert stop.requested()
        assert stop.reason == "run.max_minutes"
        now = 0.0
        assert stop.requested()


def test_a_spent_time_budget_does_not_interrupt_an_evaluation_but_a_signal_still_does(tmp_path: Path) -> None:
    with StopRequest(tmp_path, max_minutes=0) as stop:
        assert stop.requested()
        assert not stop.interrupted()
        os.kill(os.getpid(), signal.SIGINT)  # the first one: noted, no KeyboardInterrupt
        assert stop.interrupted()
        assert stop.reason == "SIGINT"


def test_the_first_reason_is_the_one_told(stop: StopRequest, tmp_path: Path) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    (tmp_path / "STOP").touch()
    assert stop.requested()
    assert stop.reason == "SIGUSR1"


def test_closing_gives_every_signal_back(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with StopRequest(tmp_path):
        assert all(signal.getsignal(number) != before[number] for number in SIGNALS)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_the_exit_code_says_try_again_later() -> None:
    assert os.EX_TEMPFAIL == PREEMPTED == 75


def test_a_launcher_that_asks_again_does_not_end_the_exit_of_a_rank_that_heeded_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setenv("RANK", "0")
    try:
        with pytest.raises(Stopped), StopRequest(tmp_path):
            raise Stopped
        os.kill(os.getpid(), signal.SIGTERM)
        heeding = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyError), StopRequest(tmp_path):
            raise KeyError
        assert signal.getsignal(signal.SIGTERM) == heeding  # after another end they are given back
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
