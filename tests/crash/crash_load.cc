// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// kill -9 under load, again and again on one data directory, with an oracle of what was acknowledged.
//
//   statepool_crash_load --daemon=BINARY --directory=DIR --cycles=N --seed=N --stop-at-first=0|1 [--least=FIELD:N,...]
//     [--shim=LIBRARY]
//
// Without the shim all kills come at random times. Prints one line of JSON. Exit: 0 measured, 2 not measurable.
#include "tests/crash/cycles.h"
#include "tests/crash/point_cycles.h"

int main(int argc, char** argv) {
  const statepool::bench::Arguments arguments(argc, argv);
  if (arguments.Has("shim")) return statepool::crash::PointCycles(arguments).Main();
  return statepool::crash::Cycles("crash", arguments).Main();
}
