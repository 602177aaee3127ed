"""What the layers of a model have in common: the same tensor stands in the same place and order in each.

A converter treats all layers alike. So a tensor that one layer has elsewhere, or in another order, is damage:
values alone would follow it there, and the model that llama.cpp reads would be another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from lorafold.errors import InputError
from lorafold.export.onto.lines import NONE, LineTable, Strip
from lorafold.export.onto.match import Search, TensorMap, block_of, layer_of, without_layer

_DAMAGED = "download the file again, or convert the base again"

_Key = TypeVar("_Key", bound=Hashable)


def check_alike(search: Search) -> None:
    """Refuse a file in which a layer's tensor is not where, or not ordered as, it is in the other layers.

    Raises:
        InputError: there is one; the message names it and another layer's.
    """
    made_of = {name: _sources(search, name, found) for name, found in search.maps.items()}
    _check_places(search, made_of)
    orders: dict[Hashable, dict[str, Hashable]] = {}
    for name, strips in made_of.items():
        found = search.maps[name]
        if strips and not (found.lines == NONE).any():
            roles = tuple(without_layer(strip.tensor) for strip in strips)
            key = (without_layer(name), search.model.tensors[name].shape, roles)
            orders.setdefault(key, {})[name] = _order(search.lines, found, strips)
    for by_name in orders.values():
        if (odd := _odd_one(by_name)) is not None:
            raise InputError(
                f"the rows of {odd[0]} are in another order than those of {odd[1]}",
                at=search.model.header.path,
                fix=_DAMAGED,
            )


def _check_places(search: Search, made_of: Mapping[str, Sequence[Strip]]) -> None:
    places: dict[str, dict[int, set[str]]] = {}
    for name, strips in made_of.items():
        for strip in strips:
            layer, block = layer_of(strip.tensor), block_of(name)
            assert layer is not None and block is not None
            shifted = f" of the block {block - layer} further" if block != layer else ""
            roles = places.setdefault(without_layer(strip.tensor), {})
            roles.setdefault(layer, set()).add(without_layer(name) + shifted)
    for role, by_layer in places.items():
        if (odd := _odd_one({layer: frozenset(roles) for layer, roles in by_layer.items()})) is not None:
            here, there = (" and ".join(sorted(by_layer[layer])) for layer in odd)
            raise InputError(
                f"{role.replace('*', str(odd[0]), 1)} is in it as {here}, the same of layer {odd[1]} as "
                f"{there}",
                at=search.model.header.path,
                fix=_DAMAGED,
            )


def _sources(search: Search, name: str, found: TensorMap) -> list[Strip]:
    """The strips of layers that a tensor of a block is made of, in the order of their names."""
    if block_of(name) is None or name not in search.model.tensors:
        return []
    strips = [strip for strip in search.lines.strips_of(found.lines) if layer_of(strip.tensor) is not None]
    return sorted(strips, key=lambda strip: (without_layer(strip.tensor), strip.columns, strip.start))


def _order(lines: LineTable, found: TensorMap, strips: Sequence[Strip]) -> str:
    """A digest of a tensor's lines by their places in their own tensors, the same for every layer."""
    owners = lines.owners(found.lines)
    firsts = np.array([strip.first for strip in strips])
    rank = np.zeros(len(lines.strips), np.int64)
    rank[lines.owners(firsts)] = np.arange(len(strips))
    order = (rank << 40)[owners] + found.lines - firsts[rank[owners]]
    columns = b"" if found.columns is None else found.columns.tobytes()
    return hashlib.blake2b(order.tobytes() + columns, digest_size=16).hexdigest()


def _odd_one(values: Mapping[_Key, Hashable]) -> tuple[_Key, _Key] | None:
    """One of the fewest that have another value than the others, and one of the most; None if all agree."""
    by_value: dict[Hashable, list[_Key]] = {}
    for key, value in values.items():
        by_value.setdefault(value, []).append(key)
    if len(by_value) < 2:
        return None
    ordered = sorted(by_value.values(), key=len)
    return ordered[0][0], ordered[-1][0]
