"""Read a checkpoint in the layout of another one of the same model.

What the names and shapes leave open is decided by values.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product

from monosoup_cli.errors import MismatchError
from monosoup_cli.formats.dtypes import BITS, FLOATING
from monosoup_cli.formats.header import AGAIN, TensorInfo
from monosoup_cli.layouts.arrangement import Arranged, Piece, dimensions
from monosoup_cli.layouts.layout import Atom, Reading, facts_of, same, starred
from monosoup_cli.layouts.names import canonical
from monosoup_cli.layouts.table import all_readings
from monosoup_cli.layouts.way import Way, are_unlike, choose
from monosoup_cli.sources.alignment import align
from monosoup_cli.sources.derived import Derived, Made
from monosoup_cli.sources.source import DENSE, Source

__all__ = ["in_layout_of", "modules_of"]

SAMPLED = 4
"""How many tensors of a module show whether it is alike in both checkpoints."""
MAX_READINGS = 64
"""How many readings of one module are tried at most."""
ENDING = re.compile(r"(\.weight|\.bias|_weight|(?<=_proj)_bias)$")
EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


@dataclass
class _Module:
    """The tensors of one kind in all layers: those of the same name but for its numbers.

    Attributes:
        name: The name with stars for its numbers, without `weight` or `bias`.
        readings: The readings of each tensor, by their words.
    """

    name: str
    readings: dict[str, dict[str, Reading]] = field(default_factory=dict)

    @property
    def ways(self) -> list[str]:
        """The words of the readings that every tensor of the module has."""
        first, *others = self.readings.values()
        return [words for words in first if all(words in other for other in others)]

    def atoms(self, words: str) -> Iterator[tuple[str, Atom]]:
        """Yield the atoms of all tensors under one reading, each with its tensor."""
        for tensor, readings in self.readings.items():
            for atom in readings[words].atoms:
                yield tensor, atom


@dataclass(frozen=True)
class _Owner:
    """Who has an atom: the module, the tensor, and the atom's name there."""

    module: str
    tensor: str
    name: str


def in_layout_of(
    other: Source, first: Source, leaves_out: Callable[[str], bool] = lambda name: False
) -> tuple[Source, Mapping[str, Reading]]:
    """Read a checkpoint in the layout of the first one, as far as only the layout differs.

    Args:
        other: A checkpoint under the names of the first one, where the names match.
        first: The checkpoint whose layout is wanted.
        leaves_out: Whether a tensor of the first one is not edited, and so needs no reading. Without a clear
            one, it is as if the other checkpoint did not have it.

    Returns:
        The checkpoint in that layout, and how tensors of the first one were read to be compared with it,
        where no other reading of both gives the same values.

    Raises:
        MismatchError: The weights are laid out differently, and no reading is clearly right; or some of those
            that belong together are missing.
    """
    wanted = _unmatched(first.tensors, other.tensors)
    spare = _unmatched(other.tensors, first.tensors)
    if not wanted or not spare:
        wanted, spare = {}, {}
    doubtful = _doubtful(wanted, first.tensors, other.tensors)
    wanted, spare = wanted | doubtful, spare | {name: other.tensors[name] for name in doubtful}
    unlike = _unlike(first, other, wanted)
    if not wanted and not unlike:
        return other, {}
    modules = modules_of(wanted | unlike, first, spare)
    stored = modules_of(spare | {name: other.tensors[name] for name in unlike}, other, wanted)
    owners = _owners(modules, stored, other.path)
    _check_complete(modules, owners, stored, first, other)
    tensors: dict[str, str | Made] = {name: name for name in other.tensors}
    read_as: dict[tuple[str, ...], list[tuple[int, str]]] = defaultdict(list)
    readings: dict[str, Reading] = {}
    left_out: set[str] = set()
    in_doubt = [module for module in modules.values() if module.readings.keys() <= doubtful.keys()]
    for module in (*(one for one in modules.values() if one not in in_doubt), *in_doubt):
        if module in in_doubt and not read_as:  # nothing beside it is stored otherwise after all
            continue
        ways = list(islice(_ways(module, stored, owners, first, other), MAX_READINGS))
        is_left_out = all(map(leaves_out, module.readings))
        if not ways:
            if not is_left_out:
                _check_shapes(module, stored, owners, first, other)
            continue
        is_of_other_shape = all(  # of tensors that only have one name in common, that is what is said
            name in other.tensors and other.tensors[name].shape != first.tensors[name].shape
            for name in module.readings
        )
        may_stay = module.readings.keys() <= unlike.keys()  # layers that are new, or trained far
        is_optional = may_stay or is_left_out or is_of_other_shape
        way = choose(module.name, ways, other, first, may_stay=is_optional)
        if way is None and not may_stay and not is_of_other_shape:
            left_out.update(module.readings)
        if way is None or (may_stay and way.is_identity):
            continue
        if way.is_only:
            readings |= {name: module.readings[name][way.wanted] for name in way.made}
        for name, pieces in way.made.items():
            tensors[name] = way.renamed.get(name) or _arranged(first.tensors[name], pieces, other)
            for piece in pieces:
                if piece.tensor not in first.tensors:
                    tensors.pop(piece.tensor, None)
        if any(old != name for name, old in tensors.items() if name in way.made):
            words = "" if len(way.renamed) == len(way.made) else way.words
            start = min(piece.first for pieces in way.made.values() for piece in pieces)
            read_as[(words, *way.stored)].append((start, module.name))
    if not read_as and left_out.isdisjoint(tensors):
        return other, {}
    tensors = {name: one for name, one in tensors.items() if name not in left_out}
    said = [
        _in_words([name for _, name in sorted(names)], sources, words)
        for (words, *sources), names in read_as.items()
    ]
    return Derived(other, tensors, replace(other.files, read_as=(*other.files.read_as, *said))), readings


def _arranged(wanted: TensorInfo, pieces: Sequence[Piece], other: Source) -> Arranged:
    dtype = other.tensors[pieces[0].tensor].dtype
    stop = wanted.start + wanted.elements * BITS[dtype] // 8
    return Arranged(replace(wanted, dtype=dtype, stop=stop), pieces)


def _unmatched(ones: Mapping[str, TensorInfo], others: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The floating-point tensors that the other checkpoint does not have, or has in another shape.

    Where there are more or fewer elements under a name, the shapes differ by more than the layout.
    """
    return {
        name: tensor
        for name, tensor in ones.items()
        if tensor.dtype in FLOATING
        and (
            name not in others
            or (others[name].shape != tensor.shape and others[name].elements == tensor.elements)
        )
    }


def _doubtful(
    wanted: Mapping[str, TensorInfo], ones: Mapping[str, TensorInfo], others: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """The tensors that are alike in both, beside one of another shape: they may be square, and transposed.

    So may be the square matrices in the same blocks as matrices that are, as GPT-2 has them.
    """
    parents = {_parent(name) for name in wanted if name in others}
    stacks = {
        _stack(name)
        for name, tensor in wanted.items()
        if name in others and len(tensor.shape) == 2 and others[name].shape == tensor.shape[::-1]
    }

    def is_in_doubt(name: str, shape: tuple[int, ...]) -> bool:
        is_square = len(shape) == 2 and shape[0] == shape[1]
        return _parent(name) in parents or (is_square and _stack(name) in stacks)

    return {
        name: tensor
        for name, tensor in ones.items()
        if parents
        and tensor.dtype in FLOATING
        and name in others
        and others[name].shape == tensor.shape
        and is_in_doubt(name, tensor.shape)
    }


def _unlike(first: Source, other: Source, wanted: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors that are alike in both but for their values, and that could be read in several ways.

    Of each module that can be read without a download, a few blocks are compared.
    """
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, tensor in first.tensors.items():
        twin = other.tensors.get(name)
        if twin is None or name in wanted or twin.shape != tensor.shape:
            continue
        if tensor.dtype in FLOATING and twin.dtype in FLOATING:
            alike[_module_name(name), tensor.shape].append(name)
    heads = modules_of({names[0]: first.tensors[names[0]] for names in alike.values()}, first, {})
    found: dict[str, TensorInfo] = {}
    for (key, _), names in alike.items():
        if len(heads[key].readings[names[0]]) < 2:
            continue
        some = {name: first.tensors[name] for name in names[:: -(-len(names) // SAMPLED)]}
        if not all(
            first.update(name) == DENSE and first.is_at_hand(name) and other.is_at_hand(name) for name in some
        ):
            continue
        if are_unlike(_as_it_is(modules_of(some, first, {})[key]), other, first):
            found |= {name: first.tensors[name] for name in names}
    return found


def _as_it_is(module: _Module) -> Way:
    """The way in which the tensors of a module are read as they are."""
    words, *_ = module.ways
    made: dict[str, list[Piece]] = defaultdict(list)
    for name, atom in module.atoms(words):
        piece = _piece(name, atom, atom)
        if piece is not None:
            made[name].append(piece)
    return Way(words, {module.name: words}, made, {})


def modules_of(
    tensors: Mapping[str, TensorInfo], source: Source, others: Mapping[str, TensorInfo]
) -> dict[str, _Module]:
    """Describe tensors, by their modules. One that no layout knows is read as it is.

    Where several would have one name in common, each keeps its own.
    """
    facts = facts_of(source, others)
    counts = Counter(map(canonical, tensors))
    modules: dict[str, _Module] = {}
    for name, tensor in tensors.items():
        known = canonical(name) if counts[canonical(name)] == 1 else name
        readings = all_readings(known, tensor, facts)
        key = _module_name(name)
        found = modules.setdefault(key, _Module(key)).readings.setdefault(name, {})
        for one in readings or [same(known, tensor)]:
            found.setdefault(one.words, one)  # layouts that come first know best
    return modules


def _module_name(name: str) -> str:
    return ENDING.sub("", starred(name))


def _parent(name: str) -> str:
    return _module_name(name).rpartition(".")[0]


def _stack(name: str) -> str:
    """The name up to its last number, which the blocks of one stack have in common."""
    return starred(name).rpartition("*")[0]


def _atoms(modules: Mapping[str, _Module]) -> dict[str, tuple[str, str]]:
    """Map the names of all atoms to the module and the tensor that has them."""
    return {
        atom.name: (key, tensor)
        for key, one in modules.items()
        for words in one.ways
        for tensor, atom in one.atoms(words)
    }


def _owners(modules: Mapping[str, _Module], stored: Mapping[str, _Module], path: str) -> dict[str, _Owner]:
    """Map the names of atoms to those who have them in the other checkpoint."""
    theirs = _atoms(stored)
    aligned = align(_shapeless(theirs), _shapeless(_atoms(modules)), (), path)
    return {name: _Owner(*theirs[own], own) for name, own in aligned.stored.items()}


def _shapeless(names: Mapping[str, object]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", (), 0, 4) for name in names}


def _check_complete(
    modules: Mapping[str, _Module],
    owners: Mapping[str, _Owner],
    stored: Mapping[str, _Module],
    first: Source,
    other: Source,
) -> None:
    """Raise MismatchError for an atom that one side lacks, of a tensor or of experts that are in both."""
    wanted = {name: tensor for name, (_, tensor) in _atoms(modules).items()}
    theirs = {name: owner.tensor for name, owner in owners.items()}
    for has, lacks, atoms, others in ((first, other, wanted, theirs), (other, first, theirs, wanted)):
        shared = {group for name in atoms if name in others for group in (atoms[name], EXPERT.sub("*", name))}
        for name, tensor in atoms.items():
            if name not in others and not shared.isdisjoint((tensor, EXPERT.sub("*", name))):
                raise MismatchError(
                    f"missing, although {has.path} has its weights, and both have others of the same experts"
                    " or of the same fused weights",
                    path=lacks.path,
                    tensor=name,
                    hint=f"if a part of the checkpoint is missing, {AGAIN}",
                )


def _check_shapes(
    module: _Module, stored: Mapping[str, _Module], owners: Mapping[str, _Owner], first: Source, other: Source
) -> None:
    """Raise MismatchError for weights that both have in two forms, but in shapes that no reading explains."""
    for words in module.ways:
        atoms = list(module.atoms(words))
        if not atoms or any(atom.name not in owners for _, atom in atoms):
            continue
        name, owner = atoms[0][0], owners[atoms[0][1].name]
        theirs = next(iter(stored[owner.module].readings[owner.tensor].values()))
        if len(theirs.atoms) > 1 or len(module.readings[name][words].atoms) > 1:
            raise MismatchError(
                f"stored in another form than {name!r} in {first.path}, and the shapes fit in no reading",
                path=other.path,
                tensor=owner.tensor,
                expected=f"what {list(first.tensors[name].shape)} is made of",
                found=list(other.tensors[owner.tensor].shape),
            )


def _ways(
    module: _Module, stored: Mapping[str, _Module], owners: Mapping[str, _Owner], first: Source, other: Source
) -> Iterator[Way]:
    """Yield each way in which the tensors of a module can be made that the other checkpoint has."""
    for words in module.ways:
        atoms = [(name, atom) for name, atom in module.atoms(words) if atom.name in owners]
        holders = list(dict.fromkeys(owners[atom.name].module for _, atom in atoms))
        for combination in product(*(stored[holder].ways for holder in holders)) if holders else ():
            chosen = dict(zip(holders, combination, strict=True))
            places = {
                atom.name: atom for holder, how in chosen.items() for _, atom in stored[holder].atoms(how)
            }
            made: dict[str, list[Piece]] = defaultdict(list)
            for name, atom in atoms:
                owner = owners[atom.name]
                piece = _piece(owner.tensor, places[owner.name], atom)
                if piece is None:
                    break
                made[name].append(piece)
            else:
                renamed = {
                    name: pieces[0].tensor
                    for name, pieces in made.items()
                    if pieces[0].is_copied
                    and pieces[0].shape == first.tensors[name].shape == other.tensors[pieces[0].tensor].shape
                }
                yield Way(words, chosen, made, renamed)


def _piece(tensor: str, place: Atom, atom: Atom) -> Piece | None:
    """How a wanted atom is copied from where it is stored; None if its shape differs there."""
    if place.shape != atom.shape:
        return None
    found = dimensions(place.sizes, place.strides, atom.sizes, atom.strides)
    return None if found is None else Piece(tensor, found[0], place.first, found[1], atom.first, found[2])


def _in_words(names: Sequence[str], sources: Sequence[str], words: str) -> str:
    """Which modules are read as which, from the module that both are in."""
    apart = [name.split(".") for name in (*names, *sources)]
    common = 0
    while all(len(parts) > common + 1 for parts in apart) and len({parts[common] for parts in apart}) == 1:
        common += 1
    common -= common > 0 and apart[0][common - 1] != "*"
    shown = [".".join(parts[common:]) for parts in apart]
    wanted, stored = _listed(shown[: len(names)]), _listed(shown[len(names) :])
    return f"with {stored} as {wanted}{f' ({words})' if words else ''}"


def _listed(names: Sequence[str]) -> str:
    """Names, of which those beside the first one have their last components alone."""
    first, *rest = names
    outer = first.rpartition(".")[0]
    *most, last = [first, *(name.removeprefix(f"{outer}.") if outer else name for name in rest)]
    return f"{', '.join(most)} and {last}" if most else last
