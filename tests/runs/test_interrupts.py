"""What signals do to a run: one request to stop, however often it is sent at once."""

import signal
import time

import pytest

from merlin.runs.run import interrupts


@pytest.fixture
def raising():
    """Let SIGINT raise, also where a shell began the tests in the background and so had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("raising")
def test_a_signal_sent_twice_at_once_is_one_request_and_a_later_one_ends_the_process():
    """`timeout` sends it to a process and to the process's group."""
    with interrupts() as caught:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT, signal.SIGINT]
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
