"""The other files of a checkpoint's folder: which are carried to the output, which are left out, and why.

What a loader reads is carried: configuration, tokenizer, processors, code, other weights. State of training
and other copies of the weights are left out. One table, `RULES`, decides by name, and `_Walk` adds what only
the folder can tell. No file is opened but the headers of safetensors files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from monosoup_cli.errors import CheckpointError, UsageError
from monosoup_cli.formats.files import read_header
from monosoup_cli.formats.shard import stored_files
from monosoup_cli.formats.table import WEIGHTS
from monosoup_cli.sources.files import Files
from monosoup_cli.sources.folders import Folder, is_broken, targets_outside
from monosoup_cli.sources.library_files import ADAPTER_CONFIG, CARD_NAME, SHARD, TRAINING_STATE
from monosoup_cli.sources.locate import PIPELINE, parts_of

__all__ = ["LARGE", "OLD", "TOKENIZER", "LeftOut", "SideFile", "SideFiles", "side_files"]

OLD = "old model card or report"
HIDDEN = "hidden"
TRAINING = "state of training"
COPIES = "other copies of the weights"
LARGE = "over 256 MiB"
UNLISTED = "not in model_index.json"
WHOLE_MODEL = "a whole model beside the adapter"
MERGED = "merged into the base"
BASES = "of the adapter; the base has its own"
ADAPTERS = "of the base; the adapter has its own"
LINKED = "a link to a folder elsewhere"
BROKEN = "a broken link"
UNASKED = "left out by --side-files"
CODES = "of quantised weights"

RULES: Sequence[tuple[str, Sequence[str]]] = (
    (OLD, (CARD_NAME, "monosoup_report.json")),
    (HIDDEN, (".*",)),
    ("caches", ("__pycache__/", "*.pyc")),
    ("backups", ("*.bak", "*.bak[0-9]", "*.backup", "*.old", "*.orig", "*~")),
    (
        TRAINING,
        (
            *("checkpoint-*/", "global_step*/", "optimizer/", "wandb/", "runs/", "logs/", "mlruns/"),
            *("lightning_logs/", "tensorboard/", "pytorch_model_fsdp*/", "*.distcp", "latest", "*.log"),
            *TRAINING_STATE,
            *("training_args.json", "training_args.yaml", "training_params.json"),
            *("trainer_state.json", "events.out.*"),
            *("trainer_log.jsonl", "trainer_config.yaml", "running_log.txt", "llamaboard_config.yaml"),
            *("training_*.png", "loss.png", "*_loss.png", "loss_curve*.png", "nohup.out", "zero_to_fp32.py"),
            *("*_results.json", "generated_predictions.jsonl", "eval_predictions*", "*_predictions.json"),
            *("ds_config*.json", "ds_z[0-3]_*.json", "deepspeed*.json"),
            *("*_model_states.pt", "last.ckpt", "epoch=*.ckpt", "step=*.ckpt"),
        ),
    ),
    (CODES, ("hf_quant_config.json",)),
    (
        COPIES,
        (
            *("original/", "onnx/", "openvino/", "coreml/", "*.mlpackage/", "consolidated*", "weights*.npz"),
            *("model*.onnx*", "*_model*.onnx*", "openvino_*", "*.gguf", "*.h5", "*.msgpack", "*.ot"),
            *("*.tflite", "*.mlmodel", "*.nemo"),
        ),
    ),
)
"""For each reason to leave files out, globs over their names; those of folders end in a slash."""

OF_ANY_SIZE = ("non_lora_*.bin", "adapter_model.bin", "spk_dict*", "model_head.*", "tokenizer*", "*.py")
"""Globs over the names of files that are needed however large they are."""

TOKENIZER = (
    *("tokenizer.*", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "vocab.*"),
    *("merges.txt", "*.spm", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "chat_template.*"),
    "additional_chat_templates/*",
)
"""Globs over the files that a tokenizer is read from. They belong together."""

VOCABULARY = (
    *("tokenizer.json", "tokenizer.model", "vocab.*", "*.spm", "spiece.model", "sentencepiece.bpe.model"),
    "tekken.json",
)
OF_THE_BASE = ("config.json", "*.py")
"""Globs over the files in an adapter's folder that a merged model takes from the base if that has them."""

INDEX = re.compile(r"\.index(\.\w+)?\.json$")
STEM = re.compile(
    r"(model|open_clip_model|adapter_model)([.-].*)?|(open_clip_|diffusion_)?pytorch_model([._-].*)?"
)
"""The names, without the suffix, that libraries give to the weights of a model."""
EMA = re.compile(r"(^|[._-])ema([._-]|$)")

MAX_SIDE_FILE_BYTES = 256 << 20
MAX_ENTRIES = 100_000


@dataclass(frozen=True)
class SideFile:
    """A file that is carried: its name in OUT, the folder that it is from, and its name there."""

    name: str
    folder: Folder
    stored: str

    @property
    def path(self) -> Path:
        """Its path on the disk."""
        return self.folder.path(self.stored)

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.folder.nbytes(self.stored)

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return self.folder.shown(self.stored)

    @property
    def version(self) -> dict[str, Any]:
        """What distinguishes its content from another of the same size."""
        commit = self.folder.revision
        return {"mtime_ns": self.path.stat().st_mtime_ns} if commit is None else {"commit": commit}


@dataclass(frozen=True)
class LeftOut:
    """A file, or a folder whose name ends in a slash, that is left out, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class SideFiles:
    """What is carried beside new weights, and what is left out."""

    carried: Sequence[SideFile] = ()
    left_out: Sequence[LeftOut] = ()

    @property
    def names(self) -> list[str]:
        """The names of the carried files in OUT."""
        return [file.name for file in self.carried]

    def record(self) -> dict[str, Any]:
        """What the report says about them."""
        left_out = [{"name": one.name, "why": one.why} for one in self.left_out]
        return {"side_files": sorted(self.names), "left_out": left_out}


def side_files(
    model: Files, wanted: Sequence[str] = (), *, adapter: Files | None = None, taken: Collection[str] = ()
) -> SideFiles:
    """Decide which files go along with new weights.

    Args:
        model: The files whose weights are replaced.
        wanted: What the user said: "all", "none", and globs over further files.
        adapter: The adapter that is merged into the model. Its tokenizer takes the place of the model's, and
            its other files go first, but the configuration and the code are the model's.
        taken: The names in OUT that are not free.

    Raises:
        CheckpointError: A link leads out of the folder, or there are too many files.
        UsageError: A glob matches no file.
    """
    if adapter is not None and adapter.place.folder is None:
        adapter = None
    if {"all", "none"} <= set(wanted):
        raise UsageError("--side-files is all or none, not both")
    inner = model.place.inner
    of_model: dict[str, str | None] = {}
    used: set[str] = {"all", "none"}
    if model.place.folder is not None:
        walk = _Walk(model, wanted)
        of_model = walk.decide()
        used |= walk.used
    of_adapter: dict[str, str | None] = {}
    stored: dict[str, str] = {}
    if adapter is not None:
        walk = _Walk(adapter, wanted)
        found = walk.decide()
        used |= walk.used
        stored = {inner + name.removeprefix(adapter.place.inner): name for name in found}
        of_adapter = {new: found[name] for new, name in stored.items()}
    for glob in wanted:
        if glob not in used:
            raise UsageError(
                f"--side-files {glob!r} matches no file that can be carried",
                hint="a pattern must match a whole name, as 'voice.pt' or 'voices' does, or a whole path, as"
                " 'voices/*.pt' does",
            )
    _settle(of_model, of_adapter, inner)
    sources = [(model, of_model), *([] if adapter is None else [(adapter, of_adapter)])]
    return SideFiles(
        tuple(
            SideFile(name, _folder(files), name if files is model else stored[name])
            for files, reasons in sources
            for name, why in reasons.items()
            if why is None and name not in taken
        ),
        tuple(
            dict.fromkeys(
                LeftOut(name, why)
                for _, reasons in sources
                for name, why in reasons.items()
                if why is not None
            )
        ),
    )


def _settle(of_model: dict[str, str | None], of_adapter: dict[str, str | None], inner: str) -> None:
    """Choose between files that a model and the adapter that is merged into it both have.

    Args:
        of_model: For each file of the model, why it is left out.
        of_adapter: The same for the adapter's, by their names in OUT.
        inner: The part of OUT that has the weights.
    """
    has_tokenizer = any(why is None and _is_one_of(name, VOCABULARY) for name, why in of_adapter.items())
    for name, why in of_adapter.items():
        is_bases = name in of_model and _is_one_of(name, OF_THE_BASE)
        if why is None and (is_bases or name == f"{inner}{ADAPTER_CONFIG}"):
            of_adapter[name] = BASES if is_bases else MERGED
    for name, why in of_model.items():
        is_replaced = of_adapter.get(name, "") is None or (has_tokenizer and _is_one_of(name, TOKENIZER))
        if why is None and is_replaced:
            of_model[name] = ADAPTERS


class _Walk:
    """Goes through the folder of some weights and decides about every other file in it."""

    def __init__(self, files: Files, wanted: Sequence[str]) -> None:
        self._folder, self._inner = _folder(files), files.place.inner
        self._wanted = {"all", "none"}.intersection(wanted)
        self._globs = [one for one in wanted if one not in self._wanted]
        self.used: set[str] = set()
        self._tensors = files.tensors
        self._edited = {name for shard in files.shards for name in stored_files(shard)}
        self._edited |= set() if files.index is None else {files.index.name}
        self._stems = {SHARD.sub("", _stem(name)) for name in self._edited}
        self._is_adapter = files.kind.is_adapter
        self._parts = set(parts_of(self._folder)) - {"", self._inner.rstrip("/")}
        self._is_pipeline = PIPELINE in self._folder.names()
        self._entries = 0

    def decide(self) -> dict[str, str | None]:
        """For every other file, why it is left out; None if it is carried."""
        return dict(self._decide("", is_part=False, around=None))

    def _decide(
        self, inner: str, *, is_part: bool, around: LeftOut | None
    ) -> Iterator[tuple[str, str | None]]:
        """Decide about the files in a folder; `around` is the outermost one around it that is left out."""
        names = self._folder.names(inner.rstrip("/"))
        self._entries += len(names)
        if self._entries > MAX_ENTRIES:  # through links between folders, a few files can appear many times
            raise CheckpointError("contains too many files", path=self._folder.source)
        broken = {name for name in names if is_broken(self._folder, f"{inner}{name}")}
        there = [name for name in names if name not in broken]
        for name in names:
            relative = f"{inner}{name}"
            reason = around.why if around else _by_name(name)
            if relative in self._edited:
                continue
            if reason in {HIDDEN, OLD}:
                yield relative, reason
            elif name in broken:
                yield relative, BROKEN
            elif self._folder.is_folder(relative):
                reason = reason or _by_name(f"{name}/")
                is_of_pipeline = is_part or relative in self._parts or f"{relative}/" == self._inner
                is_linked = not is_of_pipeline and bool(targets_outside(self._folder, [relative]))
                if is_linked:
                    reason = reason or LINKED  # it may be as large as a disk
                if self._is_pipeline and not is_of_pipeline and reason is None and self._is_model(relative):
                    reason = UNLISTED  # its configuration is of no use without its weights
                left = around or (LeftOut(relative, reason) if reason else None)
                is_in_part = is_part or relative in self._parts
                decided: list[tuple[str, str | None]] = []
                is_linked = is_linked and (around is None or around.why != LINKED)
                if self._is_spelled_out(relative) if is_linked else reason is None or self._asks_for_more():
                    decided += self._decide(f"{relative}/", is_part=is_in_part, around=left)
                if reason is not None and all(why is not None for _, why in decided):
                    yield f"{relative}/", reason
                else:
                    yield from decided
            else:
                reason = reason or self._by_content(inner, name, there, is_part=is_part)
                yield relative, self._as_wanted(relative, reason, around)

    def _asks_for_more(self) -> bool:
        return bool(self._globs) or "all" in self._wanted

    def _is_spelled_out(self, folder: str) -> bool:
        """Whether a glob has the folder's name, or begins with its path."""
        path = folder.split("/")
        return any(
            glob.rstrip("/") == path[-1] or glob.split("/")[: len(path)] == path for glob in self._globs
        )

    def _as_wanted(self, name: str, why: str | None, around: LeftOut | None) -> str | None:
        visible = name if around is None else around.name
        used = {glob for glob in self._globs if _matches(name, glob, visible)}
        self.used |= used
        if used or "all" in self._wanted:
            return None
        return why or (UNASKED if "none" in self._wanted else None)

    def _is_model(self, folder: str) -> bool:
        names = self._folder.names(folder)
        return ADAPTER_CONFIG not in names and any(name.endswith(WEIGHTS) for name in names)

    def _by_content(self, inner: str, name: str, names: Sequence[str], *, is_part: bool) -> str | None:
        """Why a file is left out that no rule names: by its neighbours, its header or its size."""
        stem, is_index = _stem(name), INDEX.search(name) is not None
        is_weights = name.endswith(WEIGHTS) or is_index
        if name.endswith((".bin", ".xml")) and {f"{stem}.bin", f"{stem}.xml"} <= set(names):
            return COPIES  # the two files of an OpenVINO model
        if (
            is_weights
            and inner == self._inner
            and (STEM.fullmatch(stem) or SHARD.sub("", stem) in self._stems)
        ):
            return WHOLE_MODEL if self._is_adapter and not stem.startswith("adapter_model") else COPIES
        if f"{inner}{name}" == f"{self._inner}{ADAPTER_CONFIG}" and not self._is_adapter:
            return MERGED
        if is_weights and EMA.search(stem):
            return COPIES
        if is_weights and STEM.fullmatch(stem) and not _is_of(name, _standard_suffix(names)):
            return COPIES  # in another format
        if is_weights and stem == "adapter_model" and ADAPTER_CONFIG in names:
            return None  # an adapter of its own, whose configuration is carried too
        if is_weights and (is_part or self._is_pipeline):
            return None if is_part else UNLISTED
        if is_weights and _is_of(name, ".safetensors"):
            return COPIES if self._is_copy(inner, name, names) else None
        is_large = self._folder.nbytes(f"{inner}{name}") > MAX_SIDE_FILE_BYTES
        return LARGE if is_large and not _is_one_of(name, OF_ANY_SIZE) else None

    def _is_copy(self, inner: str, name: str, names: Sequence[str]) -> bool:
        """Whether half of a file's tensors or more have names of edited ones; an index is as its shards."""
        if not name.endswith(".safetensors"):
            shards = [one for one in names if one.startswith(f"{_stem(name)}-") and SHARD.search(_stem(one))]
            return bool(shards) and self._is_copy(inner, shards[0], names)
        file = self._folder.open(f"{inner}{name}")
        try:
            tensors = read_header(file).tensors
        except CheckpointError:
            return False
        finally:
            file.close()
        return 0 < len(tensors) <= 2 * len(tensors.keys() & self._tensors.keys())


def _folder(files: Files) -> Folder:
    assert files.place.folder is not None
    return files.place.folder


def _by_name(name: str) -> str | None:
    """The first reason in the table for a name; that of a folder ends in a slash."""
    return next((why for why, globs in RULES if any(fnmatchcase(name, glob) for glob in globs)), None)


def _is_one_of(name: str, globs: Sequence[str]) -> bool:
    """Whether a file, or the end of its path, matches one of some globs."""
    return any(fnmatchcase(name, glob) or fnmatchcase(name, f"*/{glob}") for glob in globs)


def _matches(name: str, glob: str, visible: str) -> bool:
    """Whether the user's glob names a file or a folder that it is in, much as in .gitignore.

    Args:
        name: The path of the file.
        glob: With a slash before its end, it is matched with the path from the start, part by part. Without,
            any part of `visible` may match.
        visible: The path without what lies in a folder that is left out.
    """
    globs = glob.strip("/").split("/")
    if "/" not in glob.rstrip("/"):
        return any(fnmatchcase(part, globs[0]) for part in visible.split("/"))
    parts = name.split("/")
    return len(parts) >= len(globs) and all(map(fnmatchcase, parts, globs))


def _stem(name: str) -> str:
    """The last part of a name without the suffix of a file of weights or of an index."""
    last = INDEX.sub("", name.rpartition("/")[2])
    return last.rpartition(".")[0] if last.endswith((*WEIGHTS, ".xml")) else last


def _standard_suffix(names: Sequence[str]) -> str:
    """The suffix of the weights that a library would load: the first of which there are some."""
    found = [name for name in names if STEM.fullmatch(_stem(name))]
    return next((suffix for suffix in WEIGHTS if any(_is_of(name, suffix) for name in found)), "")


def _is_of(name: str, suffix: str) -> bool:
    return INDEX.sub("", name).endswith(suffix)
