"""Tokenised rows to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_tidpo.data.shapes import PAIR, SINGLE
from lit_tidpo.data.tokenised import sides_of
from lit_tidpo.errors import InputError
from lit_tidpo.structures import ResponseBatch

Response = Mapping[str, Any]


def collate(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Response]],
    roles: tuple[str, ...],
    index: Sequence[int],
    counted: Sequence[bool],
    pad_id: int = 0,
    multiple: int = 1,
) -> ResponseBatch:
    """Pad responses on the right and stack them, role by role.

    Args:
        prompts: Token ids of each prompt.
        responses: For each prompt its responses, one to as many as there are roles: ``ids``, and
            where there are any ``weights``, a ``reward``, ``behaviour_logps`` and a ``label``,
            whether it is desirable; and for some ``context``, whether each token is what others
            say within the response.
        roles: Names of the first, second, ... response.
        index: Position of each prompt in its data set.
        counted: False for prompts that only fill up a distributed batch.
        pad_id: Token id of the padding. Its value does not matter: masks come from the lengths.
        multiple: The padded length is a multiple of this.

    Returns:
        The batch.

    Raises:
        InputError: If a prompt has no response or too many, or only some responses have what is
            optional.
    """
    for position, own in zip(index, responses, strict=True):
        if not all(isinstance(each, Mapping) and "ids" in each for each in own):
            raise InputError(
                f"prompt {position} of the data set: expected responses as {{'ids': [...]}}, with "
                "'weights', 'reward', 'behaviour_logps' and 'label' where there are any; got "
                f"{own!r:.80}"
            )
        if not 1 <= len(own) <= len(roles):
            raise InputError(
                f"prompt {position} of the data set has {len(own)} responses; expected 1 to "
                f"{len(roles)}, one for each of the roles {roles}"
            )
    most = max(map(len, responses))
    holders = tuple(
        tuple(prompt for prompt, own in enumerate(responses) if len(own) > place)
        for place in range(most)
    )
    rows = [
        (prompts[prompt], responses[prompt][place])
        for place, held in enumerate(holders)
        for prompt in held
    ]
    lengths = [len(prompt) + len(response["ids"]) for prompt, response in rows]
    width = -(-max(lengths) // multiple) * multiple
    batch = ResponseBatch(
        input_ids=torch.tensor(
            [
                [*prompt, *response["ids"], *[pad_id] * (width - length)]
                for (prompt, response), length in zip(rows, lengths, strict=True)
            ]
        ),
        prompt_lengths=torch.tensor([len(prompt) for prompt, _ in rows]),
        lengths=torch.tensor(lengths),
        roles=roles[:most],
        index=torch.tensor(index),
        counted=torch.tensor(counted),
        holders=holders,
    )
    found = {
        name: _optional(name, [response for _, response in rows], index)
        for name in ("weights", "reward", "behaviour_logps", "label")
    }
    if found["reward"] is not None:
        batch.rewards = torch.tensor(found["reward"], dtype=torch.float32)
    if found["label"] is not None:
        batch.desirable = torch.tensor(found["label"], dtype=torch.bool)
    batch.context = _context([response for _, response in rows], batch)
    batch.supplied_weights = _by_token(found["weights"], batch)
    batch.behaviour_logps = _by_token(found["behaviour_logps"], batch)
    return batch


def _optional(name: str, responses: Sequence[Response], index: Sequence[int]) -> list[Any] | None:
    """What all responses have, or none."""
    given = [response.get(name) for response in responses]
    if all(value is None for value in given):
        return None
    if any(value is None for value in given):
        raise InputError(
            f"some of the responses to the prompts {list(index)} have {name}, others have none: "
            "give them in every row or in none (of pairs: chosen_weights and rejected_weights)"
        )
    return given


def _by_token(given: list[Any] | None, batch: ResponseBatch) -> torch.Tensor | None:
    if given is None:
        return None
    table = torch.zeros(batch.input_ids.shape)
    for row, start, values in zip(table, batch.prompt_lengths.tolist(), given, strict=True):
        row[start : start + len(values)] = torch.tensor(values)
    return table if batch.context is None else table.masked_fill(batch.context, 0.0)


def _context(responses: Sequence[Response], batch: ResponseBatch) -> torch.Tensor | None:
    """Tokens within responses that others say, ``[N, T]`` bool, if there are any."""
    flags = [response.get("context") for response in responses]
    if not any(flags):
        return None
    table = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    for row, start, own in zip(table, batch.prompt_lengths.tolist(), flags, strict=True):
        if own:
            row[start : start + len(own)] = torch.tensor(own)
    return table


def _weighed(batch: ResponseBatch, prompts: Sequence[Mapping[str, Any]]) -> ResponseBatch:
    """A batch with the weights of its pairs or groups, if they have any."""
    weights = [prompt.get("pair_weight") for prompt in prompts]
    if any(weight is not None for weight in weights):
        if None in weights:
            raise InputError(
                f"some of the rows {batch.index.tolist()} have a pair_weight, others have none: "
                "give it in every row or in none"
            )
        batch.pair_weights = torch.tensor(weights, dtype=torch.float32)
    return batch


@dataclass(frozen=True)
class PairCollator:
    """Pad tokenised pairs on the right and stack them: chosen rows, then rejected rows.

    Attributes:
        pad_id: Token id of the padding. Its value does not matter: masks come from the lengths.
        multiple: The padded length is a multiple of this.
    """

    pad_id: int = 0
    multiple: int = 1

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> ResponseBatch:
        """Make a batch.

        Args:
            pairs: Tokenised pairs.

        Returns:
            The batch, with ``2 * len(pairs)`` rows.

        Raises:
            InputError: If only some of the pairs have supplied weights, or a ``pair_weight``.
        """
        batch = collate(
            [pair["prompt_ids"] for pair in pairs],
            [[_response(pair, role) for role in PAIR] for pair in pairs],
            PAIR,
            [pair["index"] for pair in pairs],
            [pair.get("counted", True) for pair in pairs],
            self.pad_id,
            self.multiple,
        )
        scores = [pair.get(f"score_{role}") for role in PAIR for pair in pairs]
        if None not in scores:  # where some have none, a loss that asks for them says so
            batch.rewards = torch.tensor(scores)
        return _weighed(batch, pairs)


@dataclass(frozen=True)
class GroupCollator:
    """Pad tokenised groups on the right and stack them: one to many responses for each prompt.

    A group is ``{"index": 0, "prompt_ids": [...], "responses": [{"ids": [...]}, ...]}``, of ranked
    responses the best first; each may have ``weights``, a ``reward``, ``behaviour_logps``, a
    ``label``, whether it is desirable, and ``context``, whether each token is what others say. A
    group's loss is multiplied by its ``pair_weight``.

    Attributes:
        pad_id: Token id of the padding. Its value does not matter: masks come from the lengths.
        multiple: The padded length is a multiple of this.
        most: Responses that a prompt has at the most; their roles are ``response_1`` and so on.
    """

    pad_id: int = 0
    multiple: int = 1
    most: int = 16

    def __call__(self, groups: Sequence[Mapping[str, Any]]) -> ResponseBatch:
        """Make a batch.

        Raises:
            InputError: If a prompt has no response or too many, or only some groups have a
                ``pair_weight``.
        """
        batch = collate(
            [group["prompt_ids"] for group in groups],
            [group["responses"] for group in groups],
            tuple(f"response_{place}" for place in range(1, self.most + 1)),
            [group["index"] for group in groups],
            [group.get("counted", True) for group in groups],
            self.pad_id,
            self.multiple,
        )
        return _weighed(batch, groups)


@dataclass(frozen=True)
class RowsCollator:
    """Make a batch of tokenised rows: of pairs, or of single responses as groups of one.

    Attributes:
        pad_id: Token id of the padding. Its value does not matter: masks come from the lengths.
        multiple: The padded length is a multiple of this.
        max_length: Most tokens that a row of the data may have.
    """

    pad_id: int = 0
    multiple: int = 1
    max_length: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> ResponseBatch:
        """Make a batch.

        Raises:
            InputError: If there are pairs and single responses, or only some have what is optional.
        """
        kinds = {sides_of(row) for row in rows}
        if len(kinds) > 1:
            raise InputError(
                f"the rows {[row['index'] for row in rows]} are pairs and single responses: put "
                "them into data sets of their own"
            )
        if kinds == {SINGLE}:
            batch = GroupCollator(self.pad_id, self.multiple)([_group_of_one(row) for row in rows])
        else:
            batch = PairCollator(self.pad_id, self.multiple)(rows)
        batch.max_length = self.max_length
        return batch


def _group_of_one(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**row, "responses": [{**_response(row, SINGLE[0]), "label": row["label"]}]}


def _response(row: Mapping[str, Any], side: str) -> Response:
    given = {name: row[f"{side}_{name}"] for name in ("ids", "weights")}
    return {**given, "context": row.get(f"{side}_context")}
