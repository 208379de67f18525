"""Run the studies, and write the page: `python -m docs.evidence`, or parts of it."""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from docs.evidence.data import fetch
from docs.evidence.page import write_page
from docs.evidence.study import STUDIES, run_seed


def main() -> None:
    """All seeds of all studies, as many at once as there are cores; then the page from all results."""
    parser = argparse.ArgumentParser(description="Score every method on fine-tunes of small real models.")
    parser.add_argument("--studies", nargs="*", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", nargs="*", type=int, help="default: all seeds of a study")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="seeds at once; default: the cores")
    parser.add_argument("--page", action="store_true", help="only write the page from the results")
    asked = parser.parse_args()
    if not asked.page:
        fetch()
        os.environ["OMP_NUM_THREADS"] = "1"  # the seeds share the cores
        wanted = [
            (name, seed)
            for name in asked.studies
            for seed in STUDIES[name].seeds
            if asked.seeds is None or seed in asked.seeds
        ]
        with ProcessPoolExecutor(asked.jobs, get_context("spawn")) as pool:
            for done in [pool.submit(run_seed, *each) for each in wanted]:
                done.result()
    write_page()


if __name__ == "__main__":
    main()
