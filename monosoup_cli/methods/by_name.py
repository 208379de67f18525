"""A method whose settings differ from tensor to tensor, by globs over their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from monosoup_cli.devices.held import Held
from monosoup_cli.tensors.cut import Cut
from monosoup_cli.tensors.method import Access, Edit, Layer, Measure, Method, Paper, Together, Variant, Wanted
from monosoup_cli.tensors.patterns import first_match

if TYPE_CHECKING:
    import torch

__all__ = ["ByName"]


@dataclass(frozen=True)
class ByName:
    """A method for every tensor: that of the first glob that matches its name, or else that of the rest.

    Args:
        rest: The method of tensors that no glob matches. The others differ from it in their settings alone:
            they see layers as it does, measure the same and make the same checkpoints.
        methods: The other methods, by glob.
        chosen: The methods of those tensors that a glob matches, once the names are known.
    """

    _rest: Method
    _methods: Mapping[str, Method]
    _chosen: Mapping[str, Method] = field(default_factory=dict)

    @property
    def verb(self) -> str:
        """That of the rest."""
        return self._rest.verb

    @property
    def paper(self) -> Paper:
        """That of the rest."""
        return self._rest.paper

    @property
    def measures(self) -> Sequence[Measure]:
        """Those of the rest."""
        return self._rest.measures

    @property
    def access(self) -> Access:
        """That of the rest."""
        return self._rest.access

    @property
    def needs_base(self) -> bool:
        """As the rest."""
        return self._rest.needs_base

    @property
    def details(self) -> Mapping[str, Any]:
        """Those of the rest."""
        return self._rest.details

    def planned_measures(self, name: str) -> Mapping[str, Any]:
        """Those of the tensor's method."""
        return self._of(name).planned_measures(name)

    def for_names(self, names: Sequence[str]) -> ByName:
        """The methods, prepared for these names, and one of them for every name."""
        methods = {glob: method.for_names(names) for glob, method in self._methods.items()}
        matched = {name: first_match(methods, name) for name in names}
        chosen = {name: methods[glob] for name, glob in matched.items() if glob is not None}
        return ByName(self._rest.for_names(names), methods, chosen)

    def _of(self, name: str) -> Method:
        return self._chosen.get(name, self._rest)

    def variants(self) -> Sequence[Variant]:
        """The checkpoints of the rest, with what is done to kept tensors of other methods."""
        each = {name: method.variants() for name, method in self._chosen.items()}
        return [
            replace(variant, wise_of={name: own[number].wise for name, own in each.items()})
            for number, variant in enumerate(self._rest.variants())
        ]

    def edit(self, layer: Layer) -> Edit | None:
        """Edit a layer by its tensor's method."""
        return self._of(layer.name).edit(layer)

    def edit_together(
        self, base: torch.Tensor, update: torch.Tensor, names: Sequence[str]
    ) -> Together | None:
        """Edit small matrices together as far as they have the same method."""
        import torch

        methods = {id(method): method for method in map(self._of, names)}
        if len(methods) == 1:
            return self._of(names[0]).edit_together(base, update, names)
        numbers: list[int] = []
        measures: list[Sequence[Mapping[str, Any]]] = []
        results: list[Iterator[torch.Tensor]] = []
        for key, method in methods.items():
            own = [number for number, name in enumerate(names) if id(self._of(name)) == key]
            index = torch.tensor(own, device=base.device)
            together = method.edit_together(base[index], update[index], [names[number] for number in own])
            if together is not None:
                numbers += [own[number] for number in together.numbers]
                measures += together.measures
                results.append(together.results)
        return Together(numbers, measures, map(torch.cat, zip(*results, strict=True))) if numbers else None

    def held(self, cut: Cut | None, wanted: Wanted, rank: int | None) -> Held:
        """As much as the method that takes most."""
        each = [method.held(cut, wanted, rank) for method in (self._rest, *self._methods.values())]
        return Held(max(held.host for held in each), max(held.device for held in each))
