"""Operators on tensors of a card: checked for devices, shaped on the meta device, and queued."""

from functools import cache

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from tests.card.copies import copy_, local_scalar, to_copy
from tests.card.state import LOCK, STATE, index_of
from tests.card.streams import current_stream
from tests.card.tensors import CardTensor, Place, new, on_card, on_meta, view_of

aten = torch.ops.aten

SPECIAL = {
    aten.copy_.default: copy_,
    aten._to_copy.default: to_copy,
    aten._local_scalar_dense.default: local_scalar,
    aten.is_pinned.default: lambda self, device=None: False,
}
TAKES_HOST_INDICES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
NO_HOST_SCALARS = {
    *(aten.mm.default, aten.mm.out, aten.addmm.default, aten.addmm_.default, aten.addmm.out),
    *(aten.bmm.default, aten.mv.default, aten.dot.default, aten.cat.default, aten.stack.default),
}
"""Other operators take a CPU tensor without dimensions beside tensors on a card."""

PRODUCTS = {
    *(aten.mm.default, aten.mm.out, aten.addmm.default, aten.addmm_.default, aten.addmm.out),
    *(aten.bmm.default, aten.bmm.out, aten.baddbmm.default, aten.baddbmm_.default, aten.baddbmm.out),
    *(aten.mv.default, aten.mv.out, aten.addmv.default, aten.addmv_.default, aten.addmv.out),
    *(aten.dot.default, aten.dot.out, aten.linalg_solve_triangular.default),
}
"""Operators that cuBLAS computes."""

SYNCHRONIZES = {aten._linalg_eigh.default, aten._linalg_svd.default}
"""Operators of which the host reads whether they failed."""


def dispatch(operator, args, kwargs):
    """Run an operator on a card's tensors."""
    values = tree_flatten((args, kwargs))[0]
    if STATE.faults:
        card = next((one.device.index for one in values if isinstance(one, CardTensor)), None)
        STATE.fail_at(operator.overloadpacket.__name__, card)
    if operator in SPECIAL:
        return SPECIAL[operator](*args, **kwargs)
    device = _device_of(operator, values, args)
    asked = kwargs.get("device")
    if asked is not None:  # zeros_like(…, device="cpu")
        kwargs = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
        if torch.device(asked).type != "cuda":
            return torch.empty_like(operator(*map(on_meta, args), **kwargs), device=asked)
        device = torch.device("cuda", index_of(asked))
    if operator in PRODUCTS:
        STATE.cards[device.index].multiply_on(current_stream(device))
    if _waits(operator, args):
        return _run_now(operator, args, kwargs, device)
    return _queue(operator, args, kwargs, device)


@cache
def _aliases(operator):
    """For every returned value: None if it is new, else the argument that it aliases: its index,
    its name, and whether it is written."""
    schema, found = operator._schema, []
    for value in schema.returns:
        info = value.alias_info
        matches = [
            (number, argument.name, info.is_write)
            for number, argument in enumerate(schema.arguments)
            # the views of a list (split, unbind) name no set: they are the first argument's
            if info is not None
            and argument.alias_info is not None
            and (not info.before_set or argument.alias_info.before_set & info.before_set)
        ]
        found.append(matches[0] if matches else None)
    return found


def _device_of(operator, values, args):
    """The device that an operator runs on; RuntimeError where it mixes several."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    cards = sorted({str(one.device) for one in tensors if isinstance(one, CardTensor)})
    if len(cards) > 1:
        raise _mixed(*cards[:2])
    takes_indices = operator in TAKES_HOST_INDICES and isinstance(args[0], CardTensor)
    for one in tensors:
        is_fine = isinstance(one, CardTensor) or takes_indices
        if not is_fine and (one.dim() or operator in NO_HOST_SCALARS):
            raise _mixed(cards[0], one.device)
    for match in _aliases(operator):
        if match and match[2] and match[0] < len(args) and not isinstance(args[match[0]], CardTensor):
            raise _mixed(cards[0], "cpu")
    return torch.device(cards[0])


def _mixed(one, other):
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {one} and {other}!"
        " (emulated)"
    )


def _waits(operator, args):
    """Whether the host waits: results, their shapes or an error depend on the data."""
    if operator in TAKES_HOST_INDICES:
        return any(
            isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
    tags = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
    return operator in SYNCHRONIZES or bool(tags & set(operator.tags))


def _run_now(operator, args, kwargs, device):
    stream = current_stream(device)
    STATE.count(syncs=1)
    stream.drain()
    values, spec = tree_flatten((args, kwargs))
    host_args, host_kwargs = tree_unflatten(
        [Place(one).on_host() if isinstance(one, CardTensor) else one for one in values], spec
    )
    nbytes = _workspace_of(operator, args, kwargs)
    workspace = STATE.cards[device.index].allocate(nbytes, stream) if nbytes else None
    with LOCK:
        result = operator(*host_args, **host_kwargs)
    written = next((match for match in _aliases(operator) if match and match[2]), None)
    if written is not None:
        return args[written[0]]
    several = isinstance(result, (tuple, list))
    made = [
        on_card(device.index, one) if isinstance(one, torch.Tensor) else one
        for one in (result if several else [result])
    ]
    del workspace
    stream.drain()
    return tuple(made) if several else made[0]


def _workspace_of(operator, args, kwargs):
    """The bytes that cuSOLVER takes beside inputs and outputs, as LAPACK's routines of the same name do
    (2 n² for vectors), or for values the copy that it destroys: assumed, not measured."""
    matrix = args[0]
    if operator is aten._linalg_eigh.default:
        side = matrix.shape[-1]
        has_vectors = kwargs.get("compute_v", args[2] if len(args) > 2 else True)
        return ((2 if has_vectors else 1) * side * side + 6 * side) * matrix.element_size()
    if operator is aten._linalg_svd.default:
        return 4 * matrix.numel() * matrix.element_size()
    return 0


def _queue(operator, args, kwargs, device):
    values, spec = tree_flatten((args, kwargs))
    meta_args, meta_kwargs = tree_unflatten(list(map(on_meta, values)), spec)
    shaped = operator(*meta_args, **meta_kwargs)
    several = isinstance(shaped, (tuple, list))
    shapes, aliases = list(shaped) if several else [shaped], _aliases(operator)
    if several and len(aliases) == 1:  # a list of views
        aliases = aliases * len(shapes)
    made, new_places, is_view = [], {}, False
    for number, (shape, match) in enumerate(zip(shapes, aliases, strict=True)):
        if match is None:
            made.append(new(device.index, shape.size(), shape.stride(), shape.dtype))
            new_places[number] = Place(made[-1])
            continue
        index, name, is_written = match
        source = args[index] if index < len(args) else kwargs[name]
        made.append(source if is_written else view_of(source, shape))
        is_view = is_view or not is_written
    if not is_view:
        held = [_held(one) for one in values]

        def kernel():
            host = [one.on_host() if isinstance(one, Place) else one for one in held]
            host_args, host_kwargs = tree_unflatten(host, spec)
            result = operator(*host_args, **host_kwargs)
            for number, place in new_places.items():
                place.on_host().copy_(result[number] if several else result)

        current_stream(device).enqueue(kernel)
    return type(shaped)(made) if several else made[0]


def _held(value):
    """A value as a kernel needs it later."""
    if isinstance(value, CardTensor):
        return Place(value)
    return value.clone() if isinstance(value, torch.Tensor) else value
