"""Rows of tokens as the data give them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_tidpo.devices.host_rows import HostRows, Rows, to_device
from lit_tidpo.errors import InputError

_ON_HOST = tuple(field.name for field in dataclasses.fields(HostRows))

Holders = tuple[tuple[int, ...], ...]


@dataclass
class ResponseBatch(Rows):
    """Responses as right-padded rows of ``prompt + response`` tokens.

    What was on the host stays known there when the batch moves to a device; see :attr:`host`.

    Attributes:
        input_ids: Token ids, ``[N, T]``.
        prompt_lengths: Tokens of the prompt in each row, ``[N]``.
        lengths: Tokens of prompt and response in each row, ``[N]``.
        context: True at tokens within a response that others said, ``[N, T]`` bool, or None.
        roles: Names of the roles, in the order of their rows.
        index: Position of each group in its data set, ``[B]``.
        counted: False for a group that only fills up a distributed batch, ``[B]`` bool.
        supplied_weights: Token weights that came with the data, ``[N, T]``, or None.
        upcoming: Chosen rows of the batches that follow, where this one starts a window.
        holders: For each role the prompts, ``0 .. B - 1``, that have such a response; every prompt
            has the first role. None where every prompt has every role, as pairs do.
        rewards: A number for each response that came with the data, ``[N]``, or None.
        behaviour_logps: Log-probs under the model that wrote the responses, ``[N, T]``, or None.
        desirable: Whether each response is desirable, from the data, ``[N]`` bool, or None.
        pair_weights: How much each group counts, from the data, ``[B]``, or None.
        sampled: Whether the rows are none of the data: the policy wrote the responses in this run,
            or they stand under other prompts.
        max_length: Most tokens that a row of the data may have; None where that is not known.
    """

    roles: tuple[str, ...]
    index: Tensor
    counted: Tensor
    supplied_weights: Tensor | None = None
    upcoming: tuple[ResponseBatch, ...] = ()
    holders: Holders | None = None
    rewards: Tensor | None = None
    behaviour_logps: Tensor | None = None
    desirable: Tensor | None = None
    pair_weights: Tensor | None = None
    sampled: bool = False
    max_length: int | None = None

    def __post_init__(self) -> None:
        everyone = tuple(range(self.size))
        if self.holders is not None and all(held == everyone for held in self.holders):
            self.holders = None
        counts = [self.size] * len(self.roles)
        if self.holders is not None:
            counts = [len(held) for held in self.holders]
        fits = len(counts) == len(self.roles) and sum(counts) == len(self.input_ids)
        if not fits or (self.holders and self.holders[0] != everyone):
            raise InputError(
                f"a batch of {self.size} prompts with the roles {self.roles}, held by "
                f"{self.holders or 'all'}, has {len(self.input_ids)} rows: expected one for each "
                "prompt and role, role by role, and the first role for every prompt"
            )

    @property
    def size(self) -> int:
        """Number of prompts ``B``."""
        return len(self.index)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ON_HOST and value is not None and value.device.type == "cpu":
            # A new dictionary, as copies share the old one.
            self.__dict__["_host"] = {**self.__dict__.get("_host", {}), name: value}
        super().__setattr__(name, value)

    @property
    def host(self) -> HostRows:
        """The same rows on the host, without waiting for a device where they came from the host."""
        known: dict[str, Tensor] = self.__dict__.get("_host", {})
        given = {name: getattr(self, name) for name in _ON_HOST if name not in known}
        missing = {name: value.cpu() for name, value in given.items() if value is not None}
        if missing:
            self.__dict__["_host"] = known = known | missing
        return HostRows(**known)

    def known_as(self, host: HostRows) -> ResponseBatch:
        """This batch, which is known on the host already."""
        given = {name: getattr(host, name) for name in _ON_HOST}
        self.__dict__["_host"] = {k: value for k, value in given.items() if value is not None}
        return self

    def rows(self, role: str) -> slice:
        """Rows that hold ``role``.

        Raises:
            InputError: If there is no such role.
        """
        if role not in self.roles:
            raise InputError(f"no responses of the role {role!r}: the batch has {self.roles}")
        place = self.roles.index(role)
        if self.holders is None:
            return slice(place * self.size, (place + 1) * self.size)
        start = sum(map(len, self.holders[:place]))
        return slice(start, start + len(self.holders[place]))

    def of_rows(self, of_prompts: Tensor) -> Tensor:
        """Values of each prompt, ``[B, ...]``, for each of its rows, ``[N, ...]``."""
        if self.holders is None:
            return torch.cat([of_prompts] * len(self.roles))
        return torch.cat([of_prompts[_held(held, of_prompts)] for held in self.holders])

    def by_prompt(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """One value for each row as a table with a line for each prompt.

        Args:
            values: ``[N]``.

        Returns:
            The values, role by role, zero where a prompt has no such response, and whether it has
            one, ``[B, roles]`` both.

        Example:
            >>> two, five = torch.tensor([[7]]).repeat(5, 1), torch.tensor([1]).repeat(5)
            >>> batch = ResponseBatch(
            ...     two, five, five, ("first", "second", "third"), torch.arange(2),
            ...     torch.ones(2).bool(), holders=((0, 1), (0, 1), (1,)))
            >>> batch.by_prompt(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))[0]
            tensor([[1., 3., 0.],
                    [2., 4., 5.]])
        """
        table = values.new_zeros(self.size, len(self.roles))
        present = torch.zeros(table.shape, dtype=torch.bool, device=values.device)
        for place, role in enumerate(self.roles):
            held = None if self.holders is None else self.holders[place]
            lines = slice(None) if held is None else _held(held, values)
            table[lines, place] = values[self.rows(role)]
            present[lines, place] = True
        return table, present

    @property
    def labels(self) -> Tensor | None:
        """Whether each response is desirable, ``[N]`` bool; of pairs the chosen ones are."""
        if self.desirable is None and self.roles == ("chosen", "rejected"):
            chosen = torch.ones_like(self.counted)
            return torch.cat([chosen, ~chosen])
        return self.desirable

    def mismatched(self) -> ResponseBatch:
        """Each prompt with the next prompt's response of the same role.

        They are cut to ``max_length``, or to the width of the batch where that is not known.
        """
        rows = torch.arange(len(self.input_ids), device=self.input_ids.device)
        other = torch.cat([rows[self.rows(role)].roll(-1) for role in self.roles])
        width = self._width_of_mismatched()
        ids = pad(self.input_ids, (0, max(0, width - self.input_ids.shape[1])))[:, :width]
        starts, own = self.prompt_lengths[other], self.prompt_lengths
        positions = torch.arange(width, device=ids.device)
        source = (positions - own[:, None] + starts[:, None]).clamp(0, width - 1)
        lengths = own + self.lengths[other] - starts
        context = self.context
        if context is not None:
            wide = pad(context, (0, max(0, width - context.shape[1])))
            context = wide[other].gather(1, source)
        return dataclasses.replace(
            self,
            input_ids=torch.where(positions < own[:, None], ids, ids[other].gather(1, source)),
            lengths=lengths.clamp(max=width),
            context=context,
            supplied_weights=None,
            rewards=None,
            behaviour_logps=None,
            upcoming=(),
            sampled=True,
        )

    def _width_of_mismatched(self) -> int:
        if self.max_length is None:
            return self.input_ids.shape[1]
        host = self.host  # so that no device is waited for
        responses = host.lengths - host.prompt_lengths
        others = torch.cat([responses[self.rows(role)].roll(-1) for role in self.roles])
        return min(int((host.prompt_lengths + others).max()), self.max_length)

    def pairs_of_rows(self) -> list[tuple[int, int]]:
        """Every two rows that answer the same prompt, the earlier role first.

        Example:
            >>> two, five = torch.tensor([[7]]).repeat(5, 1), torch.tensor([1]).repeat(5)
            >>> batch = ResponseBatch(
            ...     two, five, five, ("first", "second", "third"), torch.arange(2),
            ...     torch.ones(2).bool(), holders=((0, 1), (0, 1), (1,)))
            >>> batch.pairs_of_rows()
            [(0, 2), (1, 3), (1, 4), (3, 4)]
        """
        owners = self.of_rows(torch.arange(self.size)).tolist()
        rows = [[row for row, owner in enumerate(owners) if owner == n] for n in range(self.size)]
        return [pair for own in rows for pair in combinations(own, 2)]

    def role(self, role: str) -> ResponseBatch:
        """The rows of one role as a batch of their own, cut to their longest row."""
        cut = self.as_wide(role)
        host = cut.host
        width = int(host.lengths.max())
        narrow = ("input_ids", "context", "supplied_weights", "behaviour_logps")

        def narrowed(given: Rows) -> dict[str, Any]:
            found = {name: getattr(given, name, None) for name in narrow}
            return {name: value[:, :width] for name, value in found.items() if value is not None}

        known = dataclasses.replace(host, **narrowed(host))
        return dataclasses.replace(cut, **narrowed(cut)).known_as(known)

    def as_wide(self, role: str) -> ResponseBatch:
        """The rows of one role as a batch of their own, as wide as all."""
        rows = self.rows(role)
        held = None if self.holders is None else self.holders[self.roles.index(role)]
        by_row = ("input_ids", "prompt_lengths", "lengths")
        optional = ("context", "supplied_weights", "rewards", "behaviour_logps", "desirable")

        def cut(given: Any, *names: str) -> dict[str, Any]:
            by_prompt = {name: getattr(given, name) for name in ("index", "counted")}
            if held is not None:
                by_prompt = {k: each[_held(held, each)] for k, each in by_prompt.items()}
            return {name: getattr(given, name)[rows] for name in names} | by_prompt

        present = [name for name in optional if getattr(self, name) is not None]
        on_host = [name for name in present if name in _ON_HOST]
        return dataclasses.replace(
            self,
            **cut(self, *by_row, *present),
            roles=(role,),
            holders=None,
            pair_weights=None,
            upcoming=(),
        ).known_as(HostRows(**cut(self.host, *by_row, *on_host)))

    def pin_memory(self) -> ResponseBatch:
        """Copy to page-locked memory (called by the data loader)."""
        pinned: dict[str, Any] = {
            entry.name: value.pin_memory()
            for entry in dataclasses.fields(self)
            if isinstance(value := getattr(self, entry.name), Tensor)
        }
        upcoming = tuple(batch.pin_memory() for batch in self.upcoming)
        return dataclasses.replace(self, **pinned, upcoming=upcoming)


def _held(prompts: tuple[int, ...], like: Tensor) -> Tensor:
    """Numbers of prompts as an index of tensors on the same device."""
    return to_device(torch.tensor(prompts), like.device)
