"""Print a checkpoint's accuracy on the validation data: `python -m docs.evidence.score STUDY SEED PATH`."""

import sys
from pathlib import Path

from docs.evidence.study import STUDIES, loaded, weights_in


def main() -> None:
    """The score command of a greedy soup."""
    study, seed, path = sys.argv[1:]
    scorer = STUDIES[study].module.Scorer(int(seed))
    scorer.load(loaded(weights_in(Path(path))))
    right = scorer.right(scorer.validation)
    print(100 * sum(right) / len(right))


if __name__ == "__main__":
    main()
