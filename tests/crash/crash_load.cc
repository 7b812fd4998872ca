// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// kill -9 under load, again and again on one data directory, with an oracle of what was acknowledged.
//
//   statepool_crash_load --daemon=BINARY --directory=DIR --cycles=N --seed=N --stop-at-first=0|1
//
// Prints one line of JSON. Exit: 0 measured, 2 not measurable.
#include "tests/crash/cycles.h"

int main(int argc, char** argv) {
  return statepool::crash::Cycles("crash", statepool::bench::Arguments(argc, argv)).Main();
}
