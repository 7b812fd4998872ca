// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// What the daemon's parts say of themselves, put together: for metrics and for GetCapabilities.
#ifndef STATEPOOL_SERVER_REPORT_H_
#define STATEPOOL_SERVER_REPORT_H_

#include <vector>

#include "server/core/store.h"
#include "server/memory/arenas.h"
#include "server/memory/copy_scheduler.h"
#include "server/memory/device.h"
#include "server/rpc/service.h"
#include "server/telemetry/metrics.h"
#include "server/tiers/residency.h"

namespace statepool {

// `leases`: null for none. Thread-safe; takes each part's lock for a moment, one after the other.
MetricsSnapshot TakeSnapshot(const Store& store, const Residency& residency, const Arenas& arenas, const Leases* leases,
                             const CopyScheduler& copies, const StatePoolService& service);

// Thread-safe; never blocks.
std::vector<v1::DeviceInfo> ReportDevices(const std::vector<Device*>& devices);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_REPORT_H_
