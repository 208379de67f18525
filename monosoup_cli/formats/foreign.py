"""Files that are no weights that can be read here: what they are called, and what to do about them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from monosoup_cli.errors import CheckpointError
from monosoup_cli.formats.strided import Bytes

__all__ = ["OTHER_FORMATS", "OTHER_SUFFIXES", "OtherFormat", "recognise"]

START_BYTES = 512
AGAIN = "the download failed, or needs a login: download it again"
SERVERS_ERROR = (
    rb"(?i)(?=[\t\r\n\x20-\x7e]{4,300}\Z)[^\n]*\b(not found|forbidden|unauthori[sz]ed|denied|restricted"
    rb"|expired|log in|invalid (username|credentials|token)|bad (request|gateway)|too many requests"
    rb"|rate limit|server error|unavailable|gateway time-?out)\b"
)
"""How the short text begins that the Hub and other servers send in place of a file."""
IN_PYTORCH = "use the same model in PyTorch's or the safetensors format"
UNPACK = "decompress it: {} -dc OLD > NEW"


@dataclass(frozen=True)
class OtherFormat:
    """A format of files that is not read.

    Attributes:
        what: What such a file is.
        hint: What to do about it; None for nothing.
        start: How its first bytes look; None where they may be anything.
        name: How its name looks; None for any name.
    """

    what: str
    hint: str | None
    start: bytes | None = None
    name: str | None = None

    def fits(self, start: bytes, name: str) -> bool:
        """Return whether a file of this name that starts with these bytes is of the format."""
        if self.name is not None and re.fullmatch(self.name, name) is None:
            return False
        return self.start is None or re.match(self.start, start, re.DOTALL) is not None


OTHER_FORMATS = (
    OtherFormat("a git-lfs pointer, not the file itself", "run `git lfs pull`", rb"version https://git-lfs"),
    OtherFormat("a git-xet pointer, not the file itself", "download it: hf download", rb"# xet version"),
    OtherFormat(
        "a web page, not the file itself", AGAIN, rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)"
    ),
    OtherFormat("an XML document, not the file itself", AGAIN, rb"(\xef\xbb\xbf)?\s*<(\?xml|Error>)"),
    OtherFormat(
        "a GGUF file",
        "edit the checkpoint that it was made from, and convert that with llama.cpp's convert_hf_to_gguf.py",
        rb"GGUF|lmgg|tjgg|fmgg",
    ),
    OtherFormat(
        "an HDF5 file, as Keras writes",
        f"{IN_PYTORCH}; transformers 4 converts a tf_model.h5: from_pretrained(DIR, from_tf=True)",
        rb"\x89HDF\r\n\x1a\n",
    ),
    OtherFormat(
        "a Keras archive", IN_PYTORCH, rb"PK\x03\x04.{26}(metadata\.json|config\.json|model\.weights\.h5)"
    ),
    OtherFormat(
        "an archive of NumPy arrays",
        "convert it: safetensors.numpy.save_file(dict(numpy.load(OLD)), NEW)",
        rb"PK\x03\x04.{26}[^\0]{1,300}?\.npy",
    ),
    OtherFormat("a single NumPy array, not a checkpoint", None, rb"\x93NUMPY"),
    OtherFormat(
        "an ONNX graph",
        "edit the PyTorch model that it was exported from, and export the result",
        rb"\x08[\x03-\x14][\x12\x1a\x22\x2a\x32\x3a\x42].*",
    ),
    OtherFormat("a TensorFlow Lite model", IN_PYTORCH, rb".{4}TFL3"),
    OtherFormat(
        "a part of a TensorFlow checkpoint",
        IN_PYTORCH,
        name=r".*\.(ckpt|ckpt-\d+)\.(index|meta|data-\d{5}-of-\d{5})|saved_model\.pb",
    ),
    OtherFormat("the weights of an OpenVINO graph", IN_PYTORCH, rb"(?!PK\x03\x04)", r"openvino_.*\.bin"),
    OtherFormat(
        "a msgpack file, as Flax writes",
        f"{IN_PYTORCH}; transformers 4 converts it: from_pretrained(DIR, from_flax=True)",
        rb"([\x81-\x8f]|\xde..|\xdf....)([\xa1-\xbf]|\xd9.)[\w./ -]{2}",
    ),
    OtherFormat(
        "a tar archive, as torch wrote before 2018",
        "save the state dict again with a torch that reads it: torch.save(model.state_dict(), PATH)",
        rb"(\./)?(sys_info|pickle|storages|tensors)\0.{100,}ustar",
    ),
    OtherFormat(
        "a tar archive, such as a .nemo file",
        "unpack it (tar -xf OLD), and pass the file of weights in it (of a .nemo file: model_weights.ckpt)",
        rb".{257}ustar",
    ),
    OtherFormat("compressed by gzip", UNPACK.format("gzip"), rb"\x1f\x8b"),
    OtherFormat("compressed by bzip2", UNPACK.format("bzip2"), rb"BZh[1-9]1AY&SY"),
    OtherFormat("compressed by xz", UNPACK.format("xz"), rb"\xfd7zXZ\0"),
    OtherFormat("compressed by zstd", UNPACK.format("zstd"), rb"\x28\xb5\x2f\xfd"),
    OtherFormat("compressed by zlib, as joblib writes Python objects", IN_PYTORCH, rb"x[\x01\x5e\x9c\xda]"),
    OtherFormat(
        "a pickle of scikit-learn, whose models have no tensors", None, rb"\x80[\x02-\x05].{0,200}sklearn"
    ),
    OtherFormat(
        "a pickle that torch.save did not write",
        "save the state dict alone: torch.save(model.state_dict(), PATH)",
        rb"\x80[\x02-\x05](?!\x8a\x0al\xfc\x9cF\xf9)",
    ),
    OtherFormat("a JSON file, not weights", "pass the file of weights, or its folder", rb'\s*(\{\s*["}]|\[)'),
    OtherFormat("a server's error, not the file itself", AGAIN, SERVERS_ERROR),
    OtherFormat("text, not weights", None, rb"[\t\r\n\x20-\x7e]{4,512}\Z"),
)
"""In the order in which they are tried: the first that fits is taken."""

OTHER_SUFFIXES = (
    ".gguf",
    ".ggml",
    ".h5",
    ".hdf5",
    ".keras",
    ".msgpack",
    ".npz",
    ".npy",
    ".onnx",
    ".tflite",
    ".nemo",
    ".tar",
    ".gz",
    ".zst",
    ".pkl",
    ".pickle",
    ".joblib",
    ".pb",
    ".ckpt.index",
    ".ot",
    ".mlmodel",
    ".mlpackage",
)
"""The suffixes of files that may hold the weights of a folder that has none to be read. No output has one."""


def recognise(file: Bytes, name: str) -> CheckpointError | None:
    """Return the error for a file of a format that is not read; None if it is of none of them.

    Args:
        file: The file.
        name: Its name, without a folder.
    """
    start = file.read(min(file.nbytes, START_BYTES))
    for other in OTHER_FORMATS:
        if start and other.fits(start, name):
            return CheckpointError(other.what, path=file.shown, hint=other.hint)
    return None
