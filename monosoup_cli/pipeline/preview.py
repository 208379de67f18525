"""The plan of a run as people and programs see it in a dry run."""

from __future__ import annotations

from typing import Any

from monosoup_cli.pipeline.cost import Estimate
from monosoup_cli.pipeline.destination import work_path
from monosoup_cli.pipeline.parts import state_of_part
from monosoup_cli.pipeline.provenance import names_only_in_base, with_roles
from monosoup_cli.pipeline.ready import Ready
from monosoup_cli.pipeline.scoring import trials_of
from monosoup_cli.pipeline.task import drafts_of
from monosoup_cli.report.preview import Cost, Preview, PreviewedTensor
from monosoup_cli.tensors.ingredients import product_rank
from monosoup_cli.tensors.patterns import settings_of
from monosoup_cli.tensors.plan import PlannedTensor

__all__ = ["preview"]


def preview(ready: Ready, estimate: Estimate | None) -> Preview:
    """What a run would do to every tensor, and what it would take."""
    planned = ready.planned
    inputs, method = planned.inputs, planned.method
    layout, resources = ready.share.layout, ready.resources
    return Preview(
        call=planned.task.call,
        verb=method.verb,
        inputs=[(role, source.path) for role, source in with_roles(inputs)],
        path=str(work_path(planned.destination)),
        push=planned.destination.options.push,
        files=[(file.name, file.nbytes) for file in layout.files],
        side_files={} if ready.share.part is not None else ready.form.side_files.record(),
        folders=[variant.folder for variant in ready.variants],
        details={**method.details, **_of_part(ready), **({"is_bound": True} if _is_bound(ready) else {})},
        only_in_base=names_only_in_base(inputs.base, inputs.finetuned, ready.plan),
        tensors=[_tensor(ready, tensor) for tensor in ready.share.tensors],
        cost=Cost(
            device=resources.names,
            download_bytes=sum(download.nbytes for download in ready.downloads),
            workers=resources.workers,
            memory_bytes=resources.host_bytes,
            device_memory_bytes=resources.device_bytes,
            trials=trials_of(ready),
            candidates=0 if planned.task.chooser is None else planned.task.chooser.candidates,
            draft_bytes=drafts_of(ready.planned.task) * layout.nbytes,
            shared_bytes=_shared_bytes(ready),
            seconds=None if estimate is None else estimate.seconds,
            calibration_seconds=None if estimate is None else estimate.calibration_seconds,
            cores=0 if estimate is None else estimate.cores,
        ),
    )


def _is_bound(ready: Ready) -> bool:
    """Whether the output may become smaller: it has room for tensors that may not have moved."""
    return ready.is_foreseen and any(ready.form.parts()[one.name] for one in ready.planned.examined)


def _of_part(ready: Ready) -> dict[str, Any]:
    """Which part is made, what there is of it, and the predicted work of all parts, as shares."""
    share = ready.share
    if share.part is None:
        return {}
    whole = sum(share.costs)
    return {
        "part": share.part.number,
        "of": share.part.count,
        "state": state_of_part(ready),
        "shares": [cost / whole for cost in share.costs],
    }


def _shared_bytes(ready: Ready) -> int:
    """What candidates share: eigenvalues and eigenvectors of Gram matrices. Of low rank there are more."""
    chooser, finetuned = ready.planned.task.chooser, ready.planned.inputs.finetuned
    if chooser is None or not chooser.candidates:
        return 0
    sides = [
        matrices.part(index).cut.side
        for tensor in ready.plan.edited
        if (matrices := tensor.matrices) is not None and product_rank(finetuned, tensor.name) is None
        for index in range(len(matrices.parts) or matrices.count)
    ]
    return sum(8 * side * (side + 1) for side in sides)


def _tensor(ready: Ready, tensor: PlannedTensor) -> PreviewedTensor:
    matrices = tensor.matrices
    method = ready.planned.method
    return PreviewedTensor(
        name=tensor.name,
        shape=tensor.shape,
        dtype=tensor.dtype,
        reason=tensor.reason,
        shared_rows=tensor.shared_rows,
        matrix=None if matrices is None else (matrices.cut.rows, matrices.cut.columns),
        stack=None if matrices is None or not matrices.is_several else matrices.count,
        measures=method.planned_measures(tensor.name) if tensor.is_edited else {},
        settings=settings_of(ready.planned.task.layers, tensor.name),
    )
