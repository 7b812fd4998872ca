// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// The parts of tests/fault/run. Each measures one daemon, prints its figures, a line of JSON each, and gives the exit
// status: 0 measured. Arguments of all: --daemon=BINARY --shim=LIBRARY --directory=DIR --seed=N --stop-at-first=0|1;
// DIR is empty, and left with anything in it.
#ifndef STATEPOOL_TESTS_FAULT_PARTS_H_
#define STATEPOOL_TESTS_FAULT_PARTS_H_

#include "tests/bench/measure.h"

namespace statepool::fault {

// --cycles=N: the load of tests/crash, its daemon killed and its disk cut.
int PowerLoss(const bench::Arguments& arguments);
// --cycles=N --tmpfs=0|1: a disk that fills up and is freed; with 1 DIR/data is a small file system of its own.
int NoSpace(const bench::Arguments& arguments);
// --from=N --step=N --sticky=0|1: one call after the other fails.
int IoError(const bench::Arguments& arguments);
// --damages=N: flipped and cut bytes in a directory at rest.
int Rot(const bench::Arguments& arguments);

}  // namespace statepool::fault

#endif  // STATEPOOL_TESTS_FAULT_PARTS_H_
