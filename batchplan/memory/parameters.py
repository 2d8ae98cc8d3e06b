"""The model's parameters as the state arithmetic reads them: by kind, with their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from batchplan.profile import ActivationProfile, ParameterGroup
from batchplan.spec import Method, Recipe

EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Parameters of the whole model that are alike in every respect that costs bytes."""

    shape: tuple[int, ...]
    num_elements: int
    """Elements of one of them."""
    count: int
    is_trained: bool = True
    is_quantised: bool = False
    """Held in NF4."""
    is_norm: bool = False
    is_layer: bool = True
    is_embedding: bool = False
    """A look-up table, which transformers' Trainer keeps out of 8-bit optimizers."""
    has_shape: bool = True
    """Whether ``shape`` is a parameter's own and not a sum of many that nobody knows apart."""

    @property
    def is_matrix(self) -> bool:
        """Whether weight decay, factoring and Muon take it for a matrix."""
        return len(self.shape) > 1 or not self.has_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Every parameter of the model, tied ones once."""

    stages: tuple[tuple[Kind, ...], ...]
    """Kinds of stages; counts are those of one stage."""
    order: tuple[int, ...]
    """Indices into ``stages``, as registered."""
    hidden_size: int = 0
    """Width of the residual stream, which sizes DeepSpeed's "auto"; 0 when unknown."""

    @classmethod
    def of(cls, profile: ActivationProfile, recipe: Recipe) -> Parameters:
        """Read them from a profile."""
        quantises = recipe.method is Method.QLORA
        return cls(
            stages=tuple(
                tuple(
                    _kind(
                        group,
                        quantises=quantises,
                        is_layer=stage.is_layer,
                        is_embedding=stage.name == EMBEDDING,
                        has_shape=bool(stage.parameters),
                    )
                    for group in stage.parameter_groups
                )
                for stage in profile.stages
            ),
            order=profile.order,
            hidden_size=profile.hidden_size,
        )

    @classmethod
    def of_size(cls, num_params: int) -> Parameters:
        """Return so many trained parameters of unknown shapes, for ``--params 7B``.

        They shard evenly and count as matrices of a layer.
        """
        group = ParameterGroup(shape=(num_params,))
        kind = _kind(group, quantises=False, is_layer=True, is_embedding=False, has_shape=False)
        return cls(stages=((kind,),), order=(0,))

    def kinds(self) -> Iterator[tuple[Kind, int]]:
        """Yield each kind with its number in the whole model."""
        for index, repeats in Counter(self.order).items():
            for kind in self.stages[index]:
                yield kind, kind.count * repeats

    def trained_matrices_in_turn(self) -> Iterator[tuple[Kind | None, Kind]]:
        """Yield the (previous, next) pairs an optimizer meets that goes tensor by tensor.

        Matrices only: they are one group of transformers' Trainer (those with weight decay).
        Parameters of one shape in a stage are taken to follow each other.
        """
        matrices = [
            [kind for kind in stage if kind.is_trained and kind.is_matrix] for stage in self.stages
        ]
        order = [index for index in self.order if matrices[index]]
        for kinds in matrices:
            yield from pairwise(kinds)
            yield from ((kind, kind) for kind in kinds if kind.count > 1)
        if order:
            yield None, matrices[order[0]][0]
        for before, after in set(pairwise(order)):
            yield matrices[before][-1], matrices[after][0]


def _kind(
    group: ParameterGroup, *, quantises: bool, is_layer: bool, is_embedding: bool, has_shape: bool
) -> Kind:
    return Kind(
        shape=group.shape,
        num_elements=group.num_elements,
        count=group.count,
        is_trained=group.is_trained,
        is_quantised=quantises and group.is_quantisable,
        is_norm=group.is_norm,
        is_layer=is_layer,
        is_embedding=is_embedding and len(group.shape) > 1,
        has_shape=has_shape,
    )
