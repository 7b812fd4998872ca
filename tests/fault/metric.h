// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// ReadMetric: one value of a daemon's /metrics.
#ifndef STATEPOOL_TESTS_FAULT_METRIC_H_
#define STATEPOOL_TESTS_FAULT_METRIC_H_

#include <optional>
#include <string>

namespace statepool::fault {

// `address`: "127.0.0.1:PORT". `name`: a metric without labels. Nothing: there was no answer within a second, or it
// has no such metric.
std::optional<double> ReadMetric(const std::string& address, const std::string& name);

}  // namespace statepool::fault

#endif  // STATEPOOL_TESTS_FAULT_METRIC_H_
