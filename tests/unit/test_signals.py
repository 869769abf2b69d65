import select
import signal
from contextlib import closing

from tests.support.leaks import no_leaks
from workers.signals import SignalQueue


def test_signals_are_taken_in_the_order_in_which_they_came():
    with no_leaks(), closing(SignalQueue(signal.SIGUSR1, signal.SIGUSR2)) as queue:
        assert queue.take() == []
        assert select.select([queue], [], [], 0)[0] == []
        for signum in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2):
            signal.raise_signal(signum)
        assert select.select([queue], [], [], 0)[0] == [queue]
        assert queue.take() == [signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2]
        assert queue.take() == []


def test_closing_puts_the_default_back_and_may_be_repeated():
    queue = SignalQueue(signal.SIGUSR1)
    queue.close()
    queue.close()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1
