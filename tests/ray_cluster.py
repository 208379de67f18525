"""A real Ray cluster on this machine, of three nodes if nothing else is said, that asks for a token.

As a program it takes the number of nodes, starts the cluster, prints its address, and removes a node for
every line that it reads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NODES = 3
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_DISABLE_IMPORT_WARNING": "1"}
PROGRAM = ("-m", "monosoup_cli")
ROOT = Path(__file__).parents[1]


class RayCluster:
    """The cluster, seen from the tests."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.address = process.stdout.readline().strip()
        assert self.address, "the cluster did not start"
        self.environment = {**os.environ, **TOKEN, **QUIET, "RAY_ADDRESS": self.address}

    def run(
        self, *argv: object, program: Sequence[str] = PROGRAM, **options: object
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line as a driver."""
        return subprocess.run(
            [sys.executable, *program, *map(str, argv), "--engine", "ray"],
            env={**self.environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            **options,
        )

    def start(self, *argv: object) -> subprocess.Popen[str]:
        """Start a driver."""
        return subprocess.Popen(
            [sys.executable, *PROGRAM, *map(str, argv), "--engine", "ray"],
            env={**self.environment, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill_a_node(self) -> None:
        """Kill a node and what runs on it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("kill\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "killed\n"


@contextmanager
def started(nodes: int = NODES, *, token: bool = True) -> Iterator[RayCluster]:
    """Start the cluster, and stop it in the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ray_cluster", str(nodes)],
        env={**os.environ, **(TOKEN if token else {}), **QUIET, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield RayCluster(process)
        finally:
            process.communicate(timeout=60)


def _serve(count: int) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(count - 1)]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
