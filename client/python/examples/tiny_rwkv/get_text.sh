#!/bin/sh
# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#
# Writes the training text, the King James Bible as Debian's package
# bible-kjv prints it, to .text/kjv.txt (or to the file named as the first
# argument): one verse a line, no references, an empty line between chapters.
set -eu

out="${1:-$(dirname "$0")/.text/kjv.txt}"
expected=82a24e4e23c644fe579ed387b20e54eb529cc0a87a25e0810064edb2216780c2

if ! command -v bible >/dev/null 2>&1; then
    apt-get install -y --no-install-recommends bible-kjv bible-kjv-text
fi

mkdir -p "$(dirname "$out")"
# `bible -f` prints "Ge1:2 And the earth was ..." with one verse a line.
bible -f gen1:1-rev22:21 | LC_ALL=C awk '
    { ref = $1; sub(/^[^ ]+ +/, "") }
    ref ~ /:1$/ && NR > 1 { print "" }
    { print }
' > "$out"

wc -c "$out"
sum=$(sha256sum "$out" | cut -d" " -f1)
echo "sha256 $sum"
[ "$sum" = "$expected" ] || echo "note: not the text of the committed weights ($expected)" >&2
