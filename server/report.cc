// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/report.h"

namespace statepool {

MetricsSnapshot TakeSnapshot(const Store& store, const Residency& residency, const Arenas& arenas, const Leases* leases,
                             const CopyScheduler& copies, const StatePoolService& service) {
  const ArenaStats mapped = arenas.stats();
  const CopySchedulerStats copying = copies.stats();
  const StoreStats names = store.stats();
  const ResidencyStats images = residency.stats();
  MetricsSnapshot out;
  out.images_bytes = {{{"hot", images.device}, images.hot_bytes + images.hot_attachment_bytes},
                      {{"cold", "disk"}, images.cold_bytes}};
  for (const ResidencyStats::PoolStats& pool : images.pools) {
    out.slots[{images.device, LayoutLabel(pool.layout), "used"}] += pool.slots_used;
    out.slots[{images.device, LayoutLabel(pool.layout), "free"}] += pool.slots_free;
  }
  out.device_bytes = {{{images.device, "used"}, images.device_used_bytes},
                      {{images.device, "free"}, images.device_budget_bytes - images.device_used_bytes}};
  out.names = {{{"sequence"}, names.sequences}, {{"snapshot"}, names.snapshots}, {{"prefix"}, names.prefixes}};
  out.prefix_lookups = {{{"hit"}, names.prefix_hits}, {{"miss"}, names.prefix_misses}};
  for (const auto& [reason, count] : names.misses) out.misses[{reason}] = count;
  out.evictions = {{{"hot", "behind_head"}, images.evictions_behind_head},
                   {{"hot", "clean"}, images.evictions_clean},
                   {{"hot", "spilled"}, images.evictions_spilled}};
  for (const auto& [reason, count] : names.evictions) out.evictions[{"name", reason}] = count;
  out.transfer_bytes = {
      {{"client", "hot"}, images.client_to_hot_bytes},  {{"hot", "client"}, service.sent_bytes()},
      {{"hot", "cold"}, images.hot_to_cold_bytes},      {{"cold", "hot"}, images.cold_to_hot_bytes},
      {{"hot", "arena"}, mapped.slots_to_arenas_bytes}, {{"arena", "hot"}, mapped.arenas_to_slots_bytes}};
  if (leases != nullptr) {
    const LeaseStats direct = leases->stats();
    out.leases = direct.leases;
    out.lease_bytes = {
        {{"pinned"}, direct.pinned_bytes}, {{"mapped"}, direct.mapped_bytes}, {{"retired"}, direct.retired_bytes}};
    out.lease_slots = {{{"pinned"}, direct.pins}, {{"granted"}, direct.grants}};
    out.lease_slots_total = {
        {{"pinned"}, direct.pins_total}, {{"granted"}, direct.granted_total}, {{"filled"}, direct.filled_total}};
  }
  out.arenas = {{{"waiting"}, mapped.waiting}, {{"leased"}, mapped.leased}, {{"quarantined"}, mapped.quarantined}};
  out.arena_bytes = {{{"leased"}, mapped.leased_bytes}, {{"quarantined"}, mapped.quarantined_bytes}};
  out.reserved_slots = mapped.reserved_slots;
  out.copy_jobs = copying.jobs;
  out.copy_waiting_bytes = copying.waiting_bytes;
  out.copies = {{{"done"}, copying.jobs_total - copying.dropped_total - copying.jobs},
                {{"dropped"}, copying.dropped_total},
                {{"refused"}, copying.refused_total}};
  out.spills = images.spills;
  out.promotions = images.promotions;
  out.dirty_bytes = names.dirty_bytes;
  out.flush_lag = names.flush_lag;
  return out;
}

std::vector<v1::DeviceInfo> ReportDevices(const Device& device) {
  v1::DeviceInfo info;
  info.set_name(device.name());
  info.set_budget_bytes(device.budget_bytes());
  info.set_used_bytes(device.used_bytes());
  info.set_chunk_bytes(device.chunk_bytes());
  info.set_healthy(device.health().ok());
  return {info};
}

}  // namespace statepool
