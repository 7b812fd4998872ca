# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
"""The table of errors that statepool.proto has in its comments."""
import dataclasses
import pathlib
import re

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto/statepool/v1/statepool.proto"


@dataclasses.dataclass(frozen=True)
class Row:
    condition: str
    retry: bool
    codes: tuple
    reasons: tuple
    keys: tuple  # "the field", or a field or key of the metadata

    def errors(self):
        """Its (code, reason)s."""
        if len(self.codes) == 1:
            return [(self.codes[0], reason) for reason in self.reasons]
        assert len(self.codes) == len(self.reasons)
        return list(zip(self.codes, self.reasons))


def read_table():
    lines = PROTO.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if re.match(r"//   condition +code +reason", line)) + 2
    end = lines.index("//", begin)
    pattern = re.compile(r"//   (?P<condition>\S.*?) +(?P<retry>R  +)?(?P<codes>[A-Z_]{5,}(?: / [A-Z_]{5,})*)  +(?P<reasons>[A-Z_]+(?:, [A-Z_]+)*)"
                         r"(?:  +(?P<keys>\S.*))?$")
    rows = []
    for line in lines[begin:end]:
        match = pattern.match(line)
        assert match, f"a row of the table that can't be read: {line}"
        keys = tuple(k.strip() for k in re.split("[;,]", match["keys"] or "") if k.strip())
        rows.append(Row(match["condition"], bool(match["retry"]), tuple(match["codes"].split(" / ")), tuple(match["reasons"].split(", ")), keys))
    return rows


def documented():
    """All (code, reason)s."""
    return {error for row in read_table() for error in row.errors()}
