"""The emulated cards themselves: what goes wrong on a real card must go wrong on them."""

import subprocess
import sys
import textwrap

PRELUDE = """
import torch
from tests.card.install import install, remove

def refuses(function):
    try:
        function()
    except (RuntimeError, IndexError) as error:
        assert "device" in str(error), error
    else:
        raise AssertionError("was not refused")

one = torch.arange(6.0).view(2, 3)
"""

ORDERS = [("late", 0), ("early", 0), ("random", 1), ("random", 2)]


def on_cards(script, orders=(("late", 0),)):
    """Run it in a process of its own, because the cards are for a whole process."""
    for_each = [
        f"for WHEN, SEED in {list(orders)}:",
        "    cards = install(2, capacity=64 << 20, when=WHEN, seed=SEED)",
        "    on_card = one.to('cuda:0')",
        textwrap.indent(textwrap.dedent(script), "    "),
        "    remove()",
    ]
    script = "\n".join([PRELUDE, *for_each])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_program_that_is_right_gets_the_cpus_numbers():
    on_cards(
        """
        assert (str(on_card.device), on_card.is_cuda) == ("cuda:0", True)
        assert torch.equal(on_card.cpu(), one)
        double = one.double()
        assert torch.allclose((on_card.double() @ on_card.double().T).cpu(), double @ double.T)
        assert float((on_card * torch.tensor(2.0)).sum()) == 30.0
        assert torch.equal(on_card[:, torch.tensor([2, 0])].cpu(), one[:, [2, 0]])
        assert on_card[on_card > 2].tolist() == [3.0, 4.0, 5.0]
        matrix = torch.diag(torch.tensor([3.0, 1.0, 2.0])).double().to("cuda:0")
        assert torch.linalg.eigh(matrix)[0].tolist() == [1.0, 2.0, 3.0]
        rows = torch.zeros(3, 4, device="cuda:0")
        for number, row in enumerate(rows):
            row.copy_(torch.full((4,), float(number)))
        rows[1:, :2].fill_(9)
        assert rows.sum().item() == 12 - 6 + 36, "unbind and slices are views"
        parts = torch.arange(10.0, device="cuda:0").tensor_split(3)
        assert [len(part) for part in parts] == [4, 3, 3]
        """,
        ORDERS,
    )


def test_devices_do_not_mix():
    on_cards(
        """
        refuses(lambda: on_card + torch.ones(2, 3))
        refuses(lambda: torch.ones(2, 3).add_(on_card))
        refuses(lambda: on_card + torch.ones(2, 3).to("cuda:1"))
        refuses(lambda: on_card @ torch.ones(3, 3))
        refuses(lambda: torch.cat([on_card, torch.ones(2, 3)]))
        refuses(lambda: torch.ones(5)[torch.tensor([1]).to("cuda:0")])
        for use in (on_card.numpy, on_card.data_ptr):
            try:
                use()
            except (TypeError, RuntimeError):
                continue
            raise AssertionError("a card's memory was read from the host")
        """,
        ORDERS,
    )


def test_a_pinned_buffer_that_is_filled_again_too_early_shows():
    on_cards("""
        buffer = torch.empty(4, pin_memory=True).fill_(1.0)
        assert buffer.is_pinned() and not torch.ones(4).is_pinned()
        in_flight = buffer.to("cuda:0", non_blocking=True)
        buffer.fill_(2.0)
        assert in_flight.tolist() == [2.0] * 4
        waited = buffer.to("cuda:0")
        buffer.fill_(3.0)
        assert waited.tolist() == [2.0] * 4
    """)


def test_a_result_is_not_there_before_the_host_waits():
    on_cards("""
        result = torch.empty(4, pin_memory=True).fill_(-1.0)
        result.copy_(torch.ones(4, device="cuda:0"), non_blocking=True)
        assert result.tolist() == [-1.0] * 4
        torch.cuda.synchronize(0)
        assert result.tolist() == [1.0] * 4
    """)


def test_a_stream_that_does_not_wait_for_another_shows():
    on_cards("""
        stream = torch.cuda.Stream("cuda:0")
        value = torch.zeros(4, device="cuda:0").add_(1)
        with torch.cuda.stream(stream):
            assert (value + 1).tolist() != [2.0] * 4
        value = torch.zeros(4, device="cuda:0").add_(1)
        stream.wait_stream(torch.cuda.default_stream("cuda:0"))
        with torch.cuda.stream(stream):
            assert (value + 1).tolist() == [2.0] * 4
        value, event = torch.zeros(4, device="cuda:0").add_(1), torch.cuda.Event()
        event.record()
        event.wait(stream)
        with torch.cuda.stream(stream):
            assert (value + 1).tolist() == [2.0] * 4
    """)


def test_memory_that_is_freed_while_another_stream_uses_it_shows():
    on_cards("""
        stream = torch.cuda.Stream("cuda:0")

        def use(is_recorded):
            value = torch.ones(1000, device="cuda:0")
            torch.cuda.synchronize(0)
            with torch.cuda.stream(stream):
                result = value + 1
            if is_recorded:
                value.record_stream(stream)
            del value
            torch.full((1000,), 7.0, device="cuda:0")
            torch.cuda.default_stream("cuda:0").synchronize()
            with torch.cuda.stream(stream):
                return float(result[0])

        assert use(is_recorded=False) == 8.0
        assert use(is_recorded=True) == 2.0
    """)


def test_memory_is_counted_runs_out_and_starts_as_nan():
    on_cards("""
        assert torch.empty(3, device="cuda:1").isnan().all()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(1)
        before = torch.cuda.max_memory_allocated(1)
        mebibytes = [torch.empty(1 << 20, dtype=torch.float64, device="cuda:1")]
        assert torch.cuda.max_memory_allocated(1) - before == 8 << 20
        assert torch.cuda.mem_get_info(1)[0] <= 56 << 20
        try:
            mebibytes += [torch.empty(1 << 20, dtype=torch.float64, device="cuda:1") for _ in range(9)]
        except torch.OutOfMemoryError:
            del mebibytes
        else:
            raise AssertionError("ten times 8 MiB fit into 64 MiB")
        assert torch.cuda.memory_allocated(1) < 1 << 20
        assert torch.cuda.memory_reserved(1) >= 8 << 20
        torch.empty(7 << 20, dtype=torch.float64, device="cuda:1")  # the cache gives way
    """)


def test_bytes_waits_and_contexts_are_counted():
    on_cards("""
        assert cards.contexts == [0]
        cards.stats.clear()
        pinned = torch.empty(1000, pin_memory=True)
        up = pinned.to("cuda:0", non_blocking=True)
        torch.ones(500).to("cuda:0")
        torch.empty(1000, pin_memory=True).copy_(up, non_blocking=True)
        up.double().cpu()
        stats = cards.stats
        assert (stats["h2d_pinned_bytes"], stats["h2d_pageable_bytes"]) == (4000, 2000)
        assert (stats["d2h_pinned_bytes"], stats["d2h_pageable_bytes"]) == (4000, 8000)
        assert stats["syncs"] == 2
        assert cards.pinned_peak == 8192  # of two buffers, each a power of two
        with torch.cuda.stream(torch.cuda.Stream("cuda:1")):
            pass
        assert cards.contexts == [0, 1]
    """)


def test_the_workspaces_of_cublas_are_counted_and_stay():
    on_cards("""
        import os, threading
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":1024:2:16:8"
        of_one = (2048 + 128) << 10
        side, live = torch.cuda.Stream("cuda:0"), cards.cards[0].live

        def multiply(*streams):
            for stream in streams:
                with torch.cuda.stream(stream):
                    on_card @ on_card.T

        def taken():
            torch.cuda.empty_cache()
            held = torch.cuda.memory_reserved(0) - live
            assert torch.cuda.mem_get_info(0)[0] == (64 << 20) - live - held
            return held / of_one

        default = torch.cuda.default_stream("cuda:0")
        multiply(default)
        multiply(default)
        assert taken() == 1
        multiply(side)
        assert taken() == 2, "one for each stream"
        for _ in range(2):
            thread = threading.Thread(target=multiply, args=(default, side))
            thread.start()
            thread.join()
            del thread
            assert taken() == 4, "one for each handle, which the next thread inherits"
    """)


def test_eigenvectors_take_a_workspace_while_they_are_computed():
    on_cards("""
        matrix = torch.eye(64, dtype=torch.float64, device="cuda:0")
        cards.count_anew()
        before = cards.cards[0].live
        torch.linalg.eigh(matrix)
        assert 3 * 64 * 64 * 8 < cards.cards[0].peak - before < 4 * 64 * 64 * 8
        assert cards.cards[0].live == before
    """)


def test_pinned_memory_is_kept_in_powers_of_two():
    on_cards("""
        torch.empty(5000, dtype=torch.uint8, pin_memory=True)
        assert (cards.pinned_live, cards.pinned_peak) == (0, 8192)
        again = torch.empty(6000, dtype=torch.uint8, pin_memory=True)
        assert (cards.pinned_live, cards.pinned_peak) == (8192, 8192)
        del again
        larger = torch.empty(9000, dtype=torch.uint8, pin_memory=True)
        assert (cards.pinned_live, cards.pinned_peak) == (16384, 8192 + 16384)
        cards.count_anew()
        assert (cards.pinned_peak, cards.stats, cards.contexts) == (16384, {}, [])
    """)


def test_what_is_told_to_fail_fails():
    on_cards("""
        from tests.card import faults
        matrix = torch.eye(3, dtype=torch.float64, device="cuda:0")

        def fails(error, function):
            try:
                function()
            except type(error) as found:
                return str(found) == str(error)
            return False

        def eigenvalues():
            return torch.linalg.eigh(matrix)[0].tolist()

        with faults.failing(faults.NOT_CONVERGED, "_linalg_eigh", after=1, times=1) as fault:
            assert eigenvalues() == [1.0] * 3
            assert fails(faults.NOT_CONVERGED, eigenvalues)
            assert eigenvalues() == [1.0] * 3
            assert fault.raised == 1
        with faults.failing(faults.SOLVER_LACKS_MEMORY, "_linalg_eigh"):
            assert fails(faults.SOLVER_LACKS_MEMORY, eigenvalues)
            assert fails(faults.SOLVER_LACKS_MEMORY, eigenvalues)
        with faults.failing(faults.BLAS_LACKS_MEMORY, "mm"):
            assert fails(faults.BLAS_LACKS_MEMORY, lambda: matrix @ matrix)
        with faults.failing(faults.OUT_OF_MEMORY, "allocate", card=1):
            torch.empty(2, device="cuda:0")
            assert fails(faults.OUT_OF_MEMORY, lambda: torch.empty(2, device="cuda:1"))
        with faults.failing(faults.NOT_PINNED, "pin"):
            assert fails(faults.NOT_PINNED, lambda: torch.empty(2, pin_memory=True))
            torch.empty(2)
        with faults.failing(faults.BUSY, "mem_get_info", "stream"):
            assert fails(faults.BUSY, torch.cuda.mem_get_info)
            assert fails(faults.BUSY, torch.cuda.Stream)
        assert eigenvalues() == [1.0] * 3
        torch.cuda.mem_get_info()
    """)


def test_threads_have_streams_of_their_own():
    on_cards("""
        import threading
        found = []

        def work(index):
            with torch.cuda.stream(torch.cuda.Stream(f"cuda:{index}")):
                found.append(float(torch.full((100,), float(index), device=f"cuda:{index}").sum()))

        threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == [0.0, 100.0]
    """)


def test_torch_is_as_it_was_afterwards():
    on_cards("""
        del on_card
        remove()
        assert not torch.cuda.is_available()
        assert torch.version.cuda is None
        assert torch.ones(2).to("cpu").tolist() == [1.0, 1.0]
        assert torch.empty(2, 3).shape == (2, 3)
        try:
            torch.ones(2, device="cuda:0")
        except (AssertionError, RuntimeError, NotImplementedError):
            pass
        else:
            raise AssertionError("there is a card left")
    """)
