"""Emulated CUDA cards: tensors that report `cuda:N` and hold host memory, for a build of torch without CUDA.

`pytest --cards N` installs N of them before tests are collected. They show what goes wrong on a real card,
but no last bits and no speed:

- Host and card are apart: an operation that mixes devices is refused.
- Work is queued on streams. When it runs is chosen by `--card-when`: "late", when the host synchronises with
  its stream, so that a pinned buffer that is filled again too early shows as wrong numbers; "early", at once;
  "random", in between, by `--card-seed`.
- Memory is that of a caching allocator with a capacity: it runs out, and new memory is full of NaN. It
  holds the workspaces of cuBLAS (one for each handle and stream, kept) and of cuSOLVER. What is cached
  counts as taken. Segments and fragmentation are left out: a block has the size asked for, in steps of 512.
- Pinned memory is counted in powers of two, and freed buffers are kept for the next ones.
- Bytes over the bus, synchronisations and the cards that were touched are counted: `STATE`, from
  `STATE.count_anew()` on.
- Anything fails when it is told to: `with faults.failing(faults.NOT_CONVERGED, "_linalg_eigh", times=1): …`

Factories are registered in Python for torch's dispatch key CUDA, which a CPU build leaves free. They return
`CardTensor`s. Every other operation arrives in `CardTensor.__torch_dispatch__`, which takes the shapes of the
results from the meta device, and queues a closure that computes on host memory.
"""
