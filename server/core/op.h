// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What every operation carries: whose it is, how long it may take, whether its caller still cares.
#ifndef STATEPOOL_SERVER_CORE_OP_H_
#define STATEPOOL_SERVER_CORE_OP_H_

#include <atomic>

#include "absl/status/status.h"
#include "server/core/clock.h"
#include "server/core/ids.h"

namespace statepool {

struct Op {
  TenantId tenant = kDefaultTenant;
  MonoTime deadline = kNever;
  const std::atomic<bool>* cancelled = nullptr;  // not owned; may be null

  // OK, or DEADLINE_EXCEEDED / CANCELLED. Checked before anything is changed and while waiting; once a change was begun
  // it is finished.
  absl::Status Check(const Clock& clock) const;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_OP_H_
