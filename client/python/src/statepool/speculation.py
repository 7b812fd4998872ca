# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""Speculative decoding (SPECULATION in statepool.proto): which of the tokens that a step has verified hold, and when an engine with blocks caches a state.

Pure functions; those of the C++ client (client/cpp/speculation.h) give the same.
"""
from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Sequence

from . import errors

STEPS_MAX = 64
"""Most steps that a row can hold (Capabilities.max_arena_steps)."""
_POSITION_MAX = 2**53


@dataclasses.dataclass(frozen=True)
class AdvanceItem:
    """What Arena.advance takes for a row: either of the first two.

    accepted  how many of the tokens hold: 1..max(steps, 1)
    path      of a tree's tokens: the steps of those that hold, ascending, each below max(steps, 1). See path_of
    to_row    the row that gets the state, in the place of the row itself, which then stays as it is
    row       which one it is for, in a list of items; in a mapping its key says so
    """

    accepted: int | None = None
    path: Iterable[int] = ()
    to_row: int | None = None
    row: int | None = None


def path_of(parents: Sequence[int], accepted: int) -> list[int]:
    """The path to the accepted token of a tree: what AdvanceItem and StoreItem take.

    parents   of each token, in the order of their steps: a smaller step, or -1 where it follows the tokens of earlier steps of the model. A chain is
              [-1, 0, 1, ...]
    accepted  the step of the last token that holds
    InvalidArgument (INVALID_PATH): a parent that is not before its token, an accepted step that is none, more than STEPS_MAX tokens.
    """
    if not 0 < len(parents) <= STEPS_MAX:
        raise errors.invalid("INVALID_PATH", f"a tree has 1..{STEPS_MAX} tokens, not {len(parents)}", "parents")
    for step, parent in enumerate(parents):
        if not -1 <= parent < step:
            raise errors.invalid("INVALID_PATH", f"the parent of step {step} is a smaller step, or -1, not {parent}", f"parents[{step}]")
    if not 0 <= accepted < len(parents):
        raise errors.invalid("INVALID_PATH", f"the accepted step is 0..{len(parents) - 1}, not {accepted}", "accepted")
    path = []
    step = operator.index(accepted)
    while step >= 0:
        path.append(step)
        step = operator.index(parents[step])
    return path[::-1]


def chain_of(parents: Sequence[int]) -> int:
    """The number of tokens of a tree that must be a chain, where an engine (MLC-LLM's RNNState) takes no other. InvalidArgument (INVALID_PATH)."""
    for step, parent in enumerate(parents):
        if parent != step - 1:
            raise errors.invalid("INVALID_PATH", f"not a chain: the parent of step {step} is {parent}, not {step - 1}", f"parents[{step}]")
    return len(path_of(parents, len(parents) - 1))


# ----------------------------------------------------------------------------------------------------------------- blocks


@dataclasses.dataclass(frozen=True)
class BlockCopy:
    """What an engine that keeps states by blocks does before a step (align_before)."""

    copies: bool  # the state of block `source` is to be copied to block `target`
    source: int  # -1: there is none
    target: int


@dataclasses.dataclass(frozen=True)
class BlockCache:
    """What it does after the step (align_after)."""

    caches: bool  # the state at `position` is to be kept
    position: int  # a multiple of the block
    accepted: int  # the accepted length that names this state among those of the step: 1 + bias; 0: nothing is cached
    block: int  # the index of the block that it ends


def align_before(block: int, computed: int, scheduled: int, stored: int | None = None) -> BlockCopy:
    """vLLM's align mode, before a step: `prev = stored or (computed - 1) // block`, `cur = ceil((computed + scheduled) / block) - 1`, and a copy when prev is
    neither none (-1) nor cur.

    block      tokens of a block, at least 1
    computed   tokens whose state there is; scheduled: those of this step, drafts included, at least 1
    stored     the index of the block that has the state, where it is known; None, as 0 there, says it is not
    InvalidArgument (INVALID_OPTION, and the field) for what is out of its range; nothing is above 2^53.
    """
    _check(block, computed, scheduled)
    if not 0 <= (stored or 0) <= _POSITION_MAX:
        raise errors.invalid("INVALID_OPTION", "0..2^53 blocks", "stored")
    source = stored or (computed - 1) // block
    target = -(-(computed + scheduled) // block) - 1
    return BlockCopy(source not in (-1, target), source, target)


def align_after(block: int, computed: int, scheduled: int, draft: int, accepted: int) -> BlockCache:
    """And after it: with R = computed + scheduled - draft and N = R + accepted - 1 tokens, the state at A = floor(N / block) * block is cached if A >= R; it is
    that after A - R tokens more than the first.

    draft     tokens of the step that were drafts: 0..scheduled - 1
    accepted  tokens that hold, 1..draft + 1
    Statepool keeps any position, and needs none of this: for an engine that finds states by blocks alone it says which ones to store. Arena.store(align=block)
    does the same by itself, of `position` N and `accepted`. InvalidArgument (INVALID_OPTION, and the field) for what is out of its range; nothing is above 2^53.
    """
    _check(block, computed, scheduled)
    if not 0 <= draft < scheduled:
        raise errors.invalid("INVALID_OPTION", f"fewer than the {scheduled} tokens are drafts", "draft")
    if not 1 <= accepted <= draft + 1:
        raise errors.invalid("INVALID_OPTION", f"1..{draft + 1} tokens hold", "accepted")
    first = computed + scheduled - draft
    last = first + accepted - 1
    position = last // block * block
    caches = position >= first
    return BlockCache(caches, position, 1 + position - first if caches else 0, position // block - 1)


def _check(block: int, computed: int, scheduled: int) -> None:
    if not 1 <= block <= _POSITION_MAX:
        raise errors.invalid("INVALID_OPTION", "a block has 1..2^53 tokens", "block")
    if not 0 <= computed <= _POSITION_MAX:
        raise errors.invalid("INVALID_OPTION", "0..2^53 tokens", "computed")
    if not 1 <= scheduled <= _POSITION_MAX:
        raise errors.invalid("INVALID_OPTION", "a step has 1..2^53 tokens", "scheduled")
