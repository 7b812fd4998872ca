// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// LayoutRegistry: the layouts a tenant registered, by fingerprint and by alias.
#ifndef STATEPOOL_SERVER_CORE_LAYOUT_REGISTRY_H_
#define STATEPOOL_SERVER_CORE_LAYOUT_REGISTRY_H_

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/core/ids.h"
#include "server/core/layout.h"
#include "server/core/mutex.h"
#include "server/core/name_log.h"

namespace statepool {

inline constexpr size_t kMaxAliasBytes = 128;

// Thread-safe.
class LayoutRegistry {
 public:
  struct Entry {
    LayoutRef layout;
    std::vector<std::string> aliases;  // in byte order
  };

  // At most `max_layouts` of `max_bytes` in all (canonical encodings, initial data included).
  LayoutRegistry(uint32_t max_layouts, uint64_t max_bytes, NameLog* log)
      : max_layouts_(max_layouts), max_bytes_(max_bytes), log_(log) {}

  // Registers durably (blocks on the disk when something is new). `alias` may be empty.
  // Errors: INVALID_NAME (alias), LAYOUT_ALIAS_TAKEN, TOO_MANY_LAYOUTS, COLD_FULL, DISK_FAILED.
  absl::StatusOr<Entry> Register(TenantId tenant, LayoutRef layout, absl::string_view alias);

  // By alias or fingerprint. Never blocks on the disk. Errors: MISSING_FIELD, LAYOUT_UNKNOWN, with `field`.
  absl::StatusOr<LayoutRef> Find(TenantId tenant, absl::string_view name, absl::string_view field = "layout") const;
  absl::StatusOr<Entry> Describe(TenantId tenant, absl::string_view name) const;
  std::vector<Entry> List(TenantId tenant) const;  // by fingerprint
  // True while `layout` is what its fingerprint means here: not deleted, nor about to be. Never blocks on the disk.
  bool IsRegistered(TenantId tenant, const Layout& layout) const;

  // Forgets a layout with all its aliases, durably, if `unused` says OK. From before that question on, nobody finds it
  // here any more; if the answer or the commit is an error, it is back. Errors: LAYOUT_UNKNOWN, those of `unused`,
  // COLD_FULL, DISK_FAILED.
  absl::Status Delete(TenantId tenant, absl::string_view name, absl::FunctionRef<absl::Status(const Layout&)> unused);

  // At recovery: what NameLog::LoadLayouts gave. Errors: INVALID_LAYOUT.
  absl::Status Recover(const LayoutRecord& record);

 private:
  struct Registered {
    LayoutRef layout;
    std::set<std::string> aliases;
  };
  const Registered* FindLocked(TenantId tenant, absl::string_view name) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint32_t max_layouts_;
  const uint64_t max_bytes_;
  NameLog* const log_;
  mutable Mutex mu_;
  CondVar committed_;
  uint64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool committing_ ABSL_GUARDED_BY(mu_) = false;  // one change goes to disk at a time
  const Layout* deleting_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::map<std::pair<TenantId, std::string>, Registered> layouts_ ABSL_GUARDED_BY(mu_);   // by fingerprint
  std::map<std::pair<TenantId, std::string>, std::string> aliases_ ABSL_GUARDED_BY(mu_);  // to fingerprint
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_LAYOUT_REGISTRY_H_
