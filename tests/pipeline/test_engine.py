"""Threads, without anything that they make: order, errors, interruption."""

import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from monosoup_cli.devices.cpu import Cpu
from monosoup_cli.errors import ResourceError
from monosoup_cli.pipeline.engine import PREFETCHED_BYTES, Stopped, Threads
from monosoup_cli.tensors.plan import PlannedTensor, Reads


def tensor(name):
    return PlannedTensor(name, "F32", "F32", (2, 2), None, None, Reads(base=True, mean=True))


CPU = Cpu()
TENSORS = [tensor(f"t{number}") for number in range(20)]


class Recorder:
    """A checkpoint that only notes what is prefetched."""

    def __init__(self):
        self.calls = []

    def prefetch(self, name, limit):
        self.calls.append((name, limit))


def ignore(tensor, is_done):
    pass


def run(workers, make, *, tensors=TENSORS, devices=(CPU,), sources=(), progress=ignore):
    places = [devices[number % len(devices)] for number in range(workers)]
    Threads(places).each(tensors, make, reads=lambda tensor: sources, progress=progress)


def wait_for_interrupt(worker):
    """Work for ever, as a method does that looks for the sign to stop before every block."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        worker.interrupt()
        time.sleep(0.001)


# -- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5, 30])
def test_every_tensor_is_made_once_and_started_in_order(workers):
    started, made = [], []
    run(
        workers,
        lambda tensor, worker: made.append(tensor),
        progress=lambda tensor, is_done: is_done or started.append(tensor),
    )
    assert sorted(made, key=TENSORS.index) == TENSORS
    # threads may overtake each other between taking a tensor and saying so, but by no more than there are
    assert all(abs(TENSORS.index(each) - place) < workers for place, each in enumerate(started))


def test_one_worker_makes_them_in_order_and_says_so():
    events = []
    run(
        1,
        lambda tensor, worker: events.append(tensor.name),
        tensors=TENSORS[:3],
        progress=lambda tensor, is_done: events.append((tensor.name, is_done)),
    )
    assert events == [
        *(("t0", False), "t0", ("t0", True)),
        *(("t1", False), "t1", ("t1", True)),
        *(("t2", False), "t2", ("t2", True)),
    ]


def test_nothing_to_make():
    run(3, lambda tensor, worker: pytest.fail("was called"), tensors=[])


def test_so_many_are_made_at_once():
    barrier = threading.Barrier(4, timeout=30)
    run(4, lambda tensor, worker: barrier.wait())
    assert not barrier.broken


@dataclass(frozen=True)
class NumberedCpu(Cpu):
    """A CPU that is one of several, and notes which of its workers ask for a channel."""

    index: int
    numbers: list = field(default_factory=list, compare=False)

    def channel(self, number):
        self.numbers.append(number)
        return super().channel(number)


def test_workers_share_the_devices_evenly_and_no_buffers():
    devices = [NumberedCpu(0), NumberedCpu(1)]
    barrier, workers = threading.Barrier(4, timeout=30), []

    def make(tensor, worker):
        workers.append(worker)
        barrier.wait()

    run(4, make, tensors=TENSORS[:4], devices=devices)
    assert [sorted(device.numbers) for device in devices] == [[0, 1], [0, 1]]
    assert len({id(worker.channel.host) for worker in workers}) == 4


def test_tensors_are_prefetched_before_their_turn():
    sources = [Recorder(), Recorder()]
    seen = {}
    run(2, lambda tensor, worker: seen.update({tensor.name: len(sources[0].calls)}), sources=sources)
    for source in sources:
        assert sorted(source.calls) == sorted((each.name, PREFETCHED_BYTES // 2) for each in TENSORS)
        assert [name for name, _ in source.calls[:2]] == ["t0", "t1"]
    assert all(count >= min(TENSORS.index(tensor(name)) + 1, 20) for name, count in seen.items())


def test_linear_algebra_has_one_thread_in_a_worker_and_its_own_number_after():
    before, inside = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        run(2, lambda tensor, worker: inside.append(torch.get_num_threads()))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(inside) == {1}


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_error_ends_the_others(workers):
    ended, waiting = [], threading.Semaphore(0)

    def make(tensor, worker):
        if tensor.name == "t0":
            for _ in range(workers - 1):
                waiting.acquire(timeout=30)
            raise ValueError("t0 is wrong")
        waiting.release()
        try:
            wait_for_interrupt(worker)
        except Stopped:
            ended.append(tensor.name)
            raise

    with pytest.raises(ValueError, match="t0 is wrong"):
        run(workers, make)
    assert sorted(ended) == ["t1", "t2"][: workers - 1]


def test_an_error_in_a_callback_is_an_error():
    made = []

    def progress(tensor, is_done):
        if tensor.name == "t3" and is_done:
            raise LookupError("from the callback")

    with pytest.raises(LookupError, match="from the callback"):
        run(1, lambda tensor, worker: made.append(tensor.name), progress=progress)
    assert made == ["t0", "t1", "t2", "t3"]


CARD = SimpleNamespace(device="cuda:7")


class OnCard(Cpu):
    """A device whose workers say that they compute on a card."""

    def channel(self, number):
        return CARD


ALLOC_FAILED = RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError, "ran out of memory on the host; .*--resume and --workers 1"),
        (torch.OutOfMemoryError, "ran out of memory on cuda:7; .*--resume and --workers 1"),
        (ALLOC_FAILED, "ran out of memory on cuda:7; .*--resume"),
        (torch.linalg.LinAlgError("did not converge\nin 30 steps"), "did not converge; --exclude keeps"),
        (
            torch.AcceleratorError("CUDA error: lost\nlong advice"),
            "cuda:7 failed: CUDA error: lost; .*resume",
        ),
    ],
    ids=["host", "card", "library", "decomposition", "fault"],
)
def test_what_fails_on_a_device_names_the_tensor(error, reason):
    def make(tensor, worker):
        if tensor.name == "t2":
            raise error

    with pytest.raises(ResourceError, match=f"tensor 't2': .*{reason}") as caught:
        run(2, make, devices=[OnCard()])
    assert caught.value.tensor == "t2"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), ALLOC_FAILED], ids=["card", "library"])
def test_a_substitute_makes_what_a_card_has_no_memory_for(error):
    made = []

    def make(tensor, worker):
        if tensor.name in ("t2", "t5") and worker.channel is CARD:
            raise error
        made.append((tensor.name, worker.is_substitute))

    Threads([OnCard()] * 3, CPU).each(TENSORS, make, reads=lambda tensor: (), progress=ignore)
    assert sorted(made) == sorted((each.name, each.name in ("t2", "t5")) for each in TENSORS)


def test_only_a_lack_of_memory_calls_the_substitute():
    def make(tensor, worker):
        raise ValueError("a bug" if worker.channel is CARD else "made again")

    with pytest.raises(ValueError, match="a bug"):
        Threads([OnCard()], CPU).each(TENSORS, make, reads=lambda tensor: (), progress=ignore)


# -- interruption -----------------------------------------------------------------------------------

PRELUDE = """
import os, signal, time
from concurrent.futures import ThreadPoolExecutor
from tests.pipeline import test_engine as engine

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
"""


def in_a_process(script):
    """Run it where no other thread can receive the signal, as those of OpenMP do that other tests leave."""
    script = PRELUDE + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("workers", [1, 3])
def test_a_signal_ends_the_workers(workers):
    in_a_process(f"""
        working, ended = [], []

        def make(tensor, worker):
            working.append(tensor.name)
            if len(working) == {workers}:
                interrupt()
            try:
                engine.wait_for_interrupt(worker)
            except engine.Stopped:
                ended.append(tensor.name)
                raise

        try:
            engine.run({workers}, make)
        except KeyboardInterrupt:
            assert sorted(ended) == sorted(working)
            assert len(ended) == {workers}
        else:
            raise AssertionError("was not interrupted")
    """)


def test_a_signal_waits_until_the_pool_is_filled():
    """Where it came between two steps of `submit`, it would leave the pool with a lock taken."""
    in_a_process("""
        submit, submitted = ThreadPoolExecutor.submit, []

        def submit_and_interrupt(pool, *words):
            interrupt()
            time.sleep(0.01)
            submitted.append(submit(pool, *words))
            return submitted[-1]

        ThreadPoolExecutor.submit = submit_and_interrupt
        try:
            engine.run(3, lambda tensor, worker: engine.wait_for_interrupt(worker))
        except KeyboardInterrupt:
            assert len(submitted) == 3
            assert all(future.done() for future in submitted)
            assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        else:
            raise AssertionError("was not interrupted")
    """)


def test_an_alarm_waits_as_well():
    in_a_process("""
        def expire(number, frame):
            raise TimeoutError

        signal.signal(signal.SIGALRM, expire)
        submit, submitted = ThreadPoolExecutor.submit, []

        def submit_after_an_alarm(pool, *words):
            signal.raise_signal(signal.SIGALRM)
            submitted.append(submit(pool, *words))
            return submitted[-1]

        ThreadPoolExecutor.submit = submit_after_an_alarm
        try:
            engine.run(3, lambda tensor, worker: engine.wait_for_interrupt(worker))
        except TimeoutError:
            assert len(submitted) == 3
            assert all(future.done() for future in submitted)
        else:
            raise AssertionError("the alarm is lost")
    """)


def test_a_signal_between_two_handlers_given_back_is_not_lost():
    in_a_process("""
        arrived, set_handler = [], signal.signal
        set_handler(signal.SIGTERM, lambda number, frame: arrived.append(number))

        def set_and_interrupt(number, handler):
            before = set_handler(number, handler)
            if handler is signal.default_int_handler:
                interrupt()
            return before

        signal.signal = set_and_interrupt
        try:
            engine.run(1, lambda tensor, worker: None)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            assert arrived == [signal.SIGTERM]
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert "hold" not in repr(signal.getsignal(signal.SIGTERM))
        else:
            raise AssertionError("was not interrupted")
    """)


def test_all_signals_that_waited_are_delivered():
    in_a_process("""
        arrived, submit = [], ThreadPoolExecutor.submit
        signal.signal(signal.SIGTERM, lambda number, frame: arrived.append(number))

        def submit_and_interrupt(pool, *words):
            interrupt()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            return submit(pool, *words)

        ThreadPoolExecutor.submit = submit_and_interrupt
        try:
            engine.run(1, lambda tensor, worker: None)
        except KeyboardInterrupt:
            assert arrived == [signal.SIGTERM]
        else:
            raise AssertionError("was not interrupted")
    """)


def test_handlers_that_are_not_pythons_stay():
    in_a_process("""
        import faulthandler, tempfile

        with tempfile.TemporaryFile() as traces:
            faulthandler.register(signal.SIGTERM, traces)
            engine.run(1, lambda tensor, worker: None)
            os.kill(os.getpid(), signal.SIGTERM)
            assert traces.tell()
    """)
