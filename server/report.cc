// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/report.h"

namespace statepool {
namespace {

std::string NameOf(Tier tier) {
  switch (tier) {
    case Tier::kUnknown: return "client";
    case Tier::kHot: return "hot";
    case Tier::kWarm: return "warm";
    case Tier::kCold: return "cold";
  }
  return "";
}

}  // namespace

MetricsSnapshot TakeSnapshot(const Store& store, const Residency& residency, const Arenas& arenas, const Leases* leases,
                             const CopyScheduler& copies, const StatePoolService& service) {
  const ArenaStats mapped = arenas.stats();
  const CopySchedulerStats copying = copies.stats();
  const StoreStats names = store.stats();
  const ResidencyStats images = residency.stats();
  MetricsSnapshot out;
  for (const ResidencyStats::MemoryStats& memory : images.memories) {
    const std::string tier = NameOf(memory.tier);
    out.images_bytes[{tier, memory.device}] += memory.image_bytes;
    out.device_bytes[{memory.device, "used"}] = memory.used_bytes;
    out.device_bytes[{memory.device, "free"}] = memory.budget_bytes - memory.used_bytes;
    out.device_healthy[{memory.device}] = memory.health.ok();
    out.evictions[{tier, "behind_head"}] += memory.evictions.behind_head;
    out.evictions[{tier, "clean"}] += memory.evictions.clean;
    out.evictions[{tier, "spilled"}] += memory.evictions.spilled;
    if (memory.tier == Tier::kHot) out.evictions[{tier, "demoted"}] += memory.evictions.demoted;
  }
  // Attachments are in host memory, once, wherever the image is.
  out.images_bytes[{NameOf(images.memories.front().tier), images.memories.front().device}] += images.attachment_bytes;
  out.images_bytes[{"cold", "disk"}] = images.cold_bytes;
  for (const ResidencyStats::PoolStats& pool : images.pools) {
    out.slots[{pool.device, LayoutLabel(pool.layout), "used"}] += pool.slots_used;
    out.slots[{pool.device, LayoutLabel(pool.layout), "free"}] += pool.slots_free;
  }
  out.names = {{{"sequence"}, names.sequences}, {{"snapshot"}, names.snapshots}, {{"prefix"}, names.prefixes}};
  out.prefix_lookups = {{{"hit"}, names.prefix_hits}, {{"miss"}, names.prefix_misses}};
  for (const auto& [reason, count] : names.misses) out.misses[{reason}] = count;
  for (const auto& [reason, count] : names.evictions) out.evictions[{"name", reason}] = count;
  out.transfer_bytes = {{{"client", "hot"}, 0},
                        {{"hot", "client"}, service.sent_bytes()},
                        {{"hot", "cold"}, 0},
                        {{"cold", "hot"}, 0},
                        {{"hot", "arena"}, mapped.slots_to_arenas_bytes},
                        {{"arena", "hot"}, mapped.arenas_to_slots_bytes}};
  for (const auto& [way, bytes] : images.transferred_bytes)
    out.transfer_bytes[{NameOf(way.first), NameOf(way.second)}] += bytes;
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
  out.flag_waits = mapped.flag_waits;
  out.flag_pinned_bytes = mapped.flag_pinned_bytes;
  out.late_failures = mapped.late_failures;
  out.copy_jobs = copying.jobs;
  out.copy_waiting_bytes = copying.waiting_bytes;
  out.copies = {{{"done"}, copying.jobs_total - copying.dropped_total - copying.jobs},
                {{"dropped"}, copying.dropped_total},
                {{"refused"}, copying.refused_total}};
  out.spills = images.spills;
  out.demotions = images.demotions;
  out.promotions = images.promotions;
  out.lost_images = images.lost_images;
  out.dirty_bytes = names.dirty_bytes;
  out.flush_lag = names.flush_lag;
  return out;
}

std::vector<v1::DeviceInfo> ReportDevices(const std::vector<Device*>& devices) {
  std::vector<v1::DeviceInfo> infos;
  for (const Device* device : devices) {
    v1::DeviceInfo& info = infos.emplace_back();
    info.set_name(device->name());
    info.set_budget_bytes(device->budget_bytes());
    info.set_used_bytes(device->used_bytes());
    info.set_chunk_bytes(device->chunk_bytes());
    info.set_healthy(device->health().ok());
  }
  return infos;
}

}  // namespace statepool
