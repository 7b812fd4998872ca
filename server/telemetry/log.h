// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Logs: lines on stderr, through spdlog. stdout belongs to the ready line.
#ifndef STATEPOOL_SERVER_TELEMETRY_LOG_H_
#define STATEPOOL_SERVER_TELEMETRY_LOG_H_

#include "absl/strings/string_view.h"

namespace statepool {

// trace, debug, info, warn, error, off. False: none of these, nothing was changed.
bool InitLogging(absl::string_view level);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_TELEMETRY_LOG_H_
