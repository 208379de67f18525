"""Run the studies, and write the page: `python -m docs.evidence`, or parts of it."""

import argparse

from docs.evidence.page import write_page
from docs.evidence.study import STUDIES, Seed


def main() -> None:
    """All steps that are not in the cache yet; then the page from all results."""
    parser = argparse.ArgumentParser(description="Score every method on fine-tunes of small real models.")
    parser.add_argument("--studies", nargs="*", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", nargs="*", type=int, help="default: all seeds of a study")
    parser.add_argument("--page", action="store_true", help="only write the page from the results")
    asked = parser.parse_args()
    for name in [] if asked.page else asked.studies:
        study = STUDIES[name]
        for seed in study.seeds if asked.seeds is None else asked.seeds:
            Seed(study, seed).run()
    write_page()


if __name__ == "__main__":
    main()
