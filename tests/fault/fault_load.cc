// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// statepool_fault_load PART --daemon=BINARY --shim=LIBRARY --directory=DIR --seed=N ...: see parts.h. Exit: 0 measured,
// 2 not measurable.
#include <string>

#include "tests/fault/parts.h"

int main(int argc, char** argv) {
  const statepool::bench::Arguments arguments(argc, argv);
  const std::string part = argc > 1 ? argv[1] : "";
  if (part == "power-loss") return statepool::fault::PowerLoss(arguments);
  if (part == "enospc") return statepool::fault::NoSpace(arguments);
  if (part == "eio") return statepool::fault::IoError(arguments);
  if (part == "rot") return statepool::fault::Rot(arguments);
  statepool::bench::NotMeasurable("no part '" + part + "'");
}
