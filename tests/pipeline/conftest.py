"""A fixture for what must not depend on how matrices are cut."""

import pytest


@pytest.fixture(params=["whole", "by blocks"])
def cut(request, monkeypatch):
    """Small matrices as they are, and the same as if they were too large to be read at once."""
    if request.param == "by blocks":
        monkeypatch.setattr("monosoup_cli.tensors.cut.BLOCK_ELEMENTS", 500)
        monkeypatch.setattr("monosoup_cli.tensors.cut.MIN_BLOCK_LENGTH", 7)
        for device in ("cpu", "cuda"):
            monkeypatch.setattr(f"monosoup_cli.devices.{device}.RESIDENT_BYTES", 600)
