"""What `pytest --again` finds: an output of other bytes than its report gives."""

import pytest

from monosoup_cli.report.files import read_report
from tests import again


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_other_bytes_are_found(run, pair, tmp_path, name):
    out = tmp_path / name
    assert run("edit", *pair, "-o", out, "--quiet").code == 0
    again._run_again(read_report(out), out)
    weights = out if out.is_file() else out / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(AssertionError, match="made again, has other bytes"):
        again._run_again(read_report(out), out)
