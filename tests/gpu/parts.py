# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""How tests/gpu/run is shared out: pieces, each with the seconds that it takes, in parts that end in time."""
import dataclasses
import re
from collections.abc import Callable

PART_S_MAX = 8 * 60
ALL_S_MAX = 20 * 60


@dataclasses.dataclass(frozen=True)
class Piece:
    name: str
    seconds: int  # an estimate, on one H100
    measure: Callable  # measure(context) -> lines of the contract
    quick_seconds: int | None = None  # with --quick; None: then it is left out


def seconds_of(piece, quick):
    return piece.quick_seconds if quick else piece.seconds


def parse_part(text):
    """"K/N" as (K, N), or None."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if match is None or int(match[1]) > int(match[2]):
        return None
    return int(match[1]), int(match[2])


def parts_of(pieces, count, quick=False):
    """`count` lists of pieces, always the same ones: the longest first, each to the part that has least."""
    left = [piece for piece in pieces if seconds_of(piece, quick) is not None]
    parts = [[] for _ in range(count)]
    for piece in sorted(left, key=lambda piece: -seconds_of(piece, quick)):
        min(parts, key=lambda part: sum(seconds_of(each, quick) for each in part)).append(piece)
    return [[piece for piece in left if piece in part] for part in parts]
