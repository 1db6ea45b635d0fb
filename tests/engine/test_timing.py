"""The clock of a training's steps."""

import pytest

from dho_plugin.engine.timing import StepClock


class Now:
    """A time that only goes on when it is told to."""

    time = 100.0

    def __call__(self) -> float:
        return self.time

    def spend(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def now():
    return Now()


def steps(clock: StepClock, now: Now, *waits: float, work: float = 2.0) -> None:
    for wait in waits:
        with clock.waiting():
            now.spend(wait)
        now.spend(work)
        clock.step_done()


def test_what_waits_is_counted_apart_from_what_works(now):
    clock = StepClock(now)
    clock.start_epoch()
    steps(clock, now, 1.0, 0.0, 0.5)
    assert (clock.data.val, clock.data.avg) == (0.5, 0.5)
    assert (clock.batch.val, clock.batch.avg) == (2.5, 2.5)
    assert clock.summary() == {"seconds": 1.5, "share": 0.2}


def test_several_waits_of_one_step_are_added_and_work_between_steps_belongs_to_the_next(now):
    clock = StepClock(now)
    clock.start_epoch()
    for _ in range(2):
        with clock.waiting():
            now.spend(0.25)
    now.spend(0.5)
    clock.step_done()
    now.spend(3.0)  # a report, say
    steps(clock, now, 0.0, work=1.0)
    assert (clock.data.sum, clock.batch.sum, clock.batch.val) == (0.5, 5.0, 4.0)


def test_an_epoch_begins_anew_and_the_training_goes_on(now):
    clock = StepClock(now)
    clock.start_epoch()
    steps(clock, now, 2.0)
    now.spend(50.0)  # a validation
    clock.start_epoch()
    steps(clock, now, 0.0, 0.0)
    assert clock.epoch_line(4) == "data wait 0.0% of the epoch"
    assert clock.summary() == {"seconds": 2.0, "share": 0.25}


@pytest.mark.parametrize(("wait", "hint"), [(0.2, False), (0.5, True)])
def test_a_long_wait_says_what_to_do(now, wait, hint):
    clock = StepClock(now)
    clock.start_epoch()
    steps(clock, now, wait, wait, wait)
    line = clock.epoch_line(workers=3)
    assert line.startswith(f"data wait {100 * wait / (2 + wait):.1f}% of the epoch")
    assert ("raise DATALOADER.NUM_WORKERS (3)" in line) == ("python -m dho_plugin.cache" in line) == hint


def test_milliseconds_need_no_hint(now):
    clock = StepClock(now)
    clock.start_epoch()
    steps(clock, now, 0.01, work=0.01)
    assert clock.epoch_line(0) == "data wait 50.0% of the epoch"


def test_a_resumed_run_counts_what_the_interrupted_one_waited(now):
    first, second = StepClock(now), StepClock(now)
    steps(first, now, 1.0)
    second.load_state(first.state())
    second.start_epoch()
    steps(second, now, 0.0, work=1.0)
    assert second.summary() == {"seconds": 1.0, "share": 0.25}
    second.load_state(None)  # a checkpoint of a time before there was a clock
    assert second.summary() is None


def test_without_a_step_there_is_nothing_to_say():
    clock = StepClock()
    clock.start_epoch()
    assert clock.summary() is None
    assert clock.epoch_line(0) == "data wait 0.0% of the epoch"
