# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The bytes of the states and scribbles of `crash/run workers`: each word of 8 bytes tells who wrote it, in which write,
and where in a state it belongs. And the oracle: which write each name may show."""
import collections

import numpy as np

from statepool.layouts import Layout, Tensor

LAYOUT = Layout("crash-workers", (
    Tensor("mixed", [0, 1, 2], "float32", {"channel": 2048}),
    Tensor("state", [0, 2], "float32", {"head": 4, "value": 64, "key": 52}),
))
WORDS = LAYOUT.state_bytes // 8
assert WORDS == 1 << 14
SAMPLE = 512  # a word of each page

STATE, SCRIBBLE = 1, 2  # what was stored or is to be; what a worker leaves in a row or in a mapping that it kept
Word = collections.namedtuple("Word", "kind lane life name number at")
_BITS = Word(2, 3, 13, 9, 23, 14)
MAX_LIVES = 1 << _BITS.life
_AT = np.arange(WORDS, dtype=np.uint64)


def first(kind, lane, life, name, number):
    """The word at 0; those that follow count on."""
    word = 0
    for value, bits in zip((kind, lane, life, name, number, 0), _BITS):
        assert 0 <= value < 1 << bits
        word = word << bits | value
    return word


def image(word):
    return np.uint64(word) + _AT


def tell(word):
    word, values = int(word), []
    for bits in reversed(_BITS):
        values.append(word & (1 << bits) - 1)
        word >>= bits
    return Word(*reversed(values))


def whole(words):
    """The word at 0 if these are all the words of one write; else None."""
    begin = tell(words[0])
    return begin if begin.kind and begin.at == 0 and np.array_equal(words, image(words[0])) else None


def is_left(words, kind, lane, name, number):
    """Whether these words are those of one such write, but for zeros here and there, or everywhere."""
    there = np.flatnonzero(words)
    if there.size == 0:
        return True
    begins = words[there] - there.astype(np.uint64)
    begin = tell(begins[0])
    return bool((begins == begins[0]).all()) and (begin.kind, begin.lane, begin.name, begin.number, begin.at) == (kind, lane, name, number, 0)


def foreign(words, lane, life):
    """A word that can't be in an arena of this life, if there is one: no zero, no state of the lane's, no scribble of its own."""
    words = words.copy()  # others may be writing
    top = words >> np.uint64(59)  # kind and lane
    mine = (words == 0) | (top == STATE << 3 | lane)
    mine |= (words >> np.uint64(46)) == (SCRIBBLE << 3 | lane) << 13 | life
    return None if mine.all() else tell(words[np.flatnonzero(~mine)[0]])


def name_of(lane, index):
    return f"lane-{lane}/{index}"


def durability_of(index):
    return "sync" if index % 8 == 0 else "write_behind" if index % 8 == 1 else "volatile"


class Oracle:
    """What the names of one lane may show: the numbers of writes, None for a name that is not there. A lane and its worker each have one, kept
    alike by what the worker tells."""

    def __init__(self):
        self.may = {}  # numbers by index; absent: nothing was ever written
        self.number = 0  # of the newest write
        self.flying = None  # (indexes, number, all_or_none) of a Store whose outcome is not known
        self.forgets = False  # the daemon may have died: what is not SYNC may be older, or gone

    def of(self, index):
        """None: any write so far."""
        return None if self.forgets and durability_of(index) != "sync" else self.may.get(index, {None})

    def unsure(self):
        return [i for i in self.may if self.of(i) is None or len(self.of(i)) > 1]

    def is_right(self, index, number):
        may = self.of(index)
        return number is None or number <= self.number if may is None else number in may

    def intend(self, number, indexes, all_or_none):
        self.number = number
        self.flying = (indexes, number, all_or_none)
        for i in indexes:
            self.may[i] = self.may.get(i, {None}) | {number}

    def acknowledge(self, indexes):
        for i in indexes:
            self.may[i] = {self.number}
        self.flying = None

    def refuse(self, indexes):
        for i in indexes:
            self.may[i] = self.may[i] - {self.number}

    def found(self, index, number):
        self.may[index] = {number}

    def is_half(self, found):
        """Whether `found`, numbers by index, shows half of a Store that was all or none."""
        if self.flying is None or not self.flying[2]:
            return False
        there = [found[i] == self.flying[1] for i in self.flying[0] if i in found and self.of(i) is not None]
        return any(there) and not all(there)
