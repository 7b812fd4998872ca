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
#include "server/core/clock.h"
#include "server/core/ids.h"
#include "server/core/layout.h"
#include "server/core/mutex.h"
#include "server/core/name_log.h"
#include "server/core/op.h"

namespace statepool {

inline constexpr size_t kMaxAliasBytes = 128;

// Thread-safe.
class LayoutRegistry {
 public:
  struct Entry {
    LayoutRef layout;
    std::vector<std::string> aliases;  // in byte order
  };

  // At most `max_layouts` of `max_bytes` in all (canonical encodings, initial data included). `log` and `clock` must
  // outlive this.
  LayoutRegistry(uint32_t max_layouts, uint64_t max_bytes, NameLog* log, const Clock* clock)
      : max_layouts_(max_layouts), max_bytes_(max_bytes), log_(log), clock_(clock) {}

  // Registers durably (blocks on the disk when something is new, and on another Register or Delete). `alias` may be
  // empty. Errors: INVALID_NAME (alias), LAYOUT_ALIAS_TAKEN, TOO_MANY_LAYOUTS, COLD_FULL, DISK_FAILED, DEADLINE,
  // CANCELLED.
  absl::StatusOr<Entry> Register(const Op& op, LayoutRef layout, absl::string_view alias);

  // By alias or fingerprint. Never blocks on the disk. Errors: MISSING_FIELD, LAYOUT_UNKNOWN, with `field`.
  absl::StatusOr<LayoutRef> Find(TenantId tenant, absl::string_view name, absl::string_view field = "layout") const;
  absl::StatusOr<Entry> Describe(TenantId tenant, absl::string_view name) const;
  std::vector<Entry> List(TenantId tenant) const;  // by fingerprint
  // True while `layout` is what its fingerprint means here: not deleted, nor about to be. Never blocks on the disk.
  bool IsRegistered(TenantId tenant, const Layout& layout) const;

  // Forgets a layout with all its aliases, durably, if `unused` says OK. Before it says so it calls `hide`, under
  // whatever lock keeps the layout unused: from then on nobody finds it here any more, unless the commit fails. When
  // the answer is an error nobody has noticed anything. Gives what was deleted. Errors: LAYOUT_UNKNOWN, those of
  // `unused`, COLD_FULL, DISK_FAILED, DEADLINE, CANCELLED.
  using Unused = absl::FunctionRef<absl::Status(const Layout&, absl::FunctionRef<void()> hide)>;
  absl::StatusOr<LayoutRef> Delete(const Op& op, absl::string_view name, Unused unused);

  // At recovery: what NameLog::LoadLayouts gave. Errors: INVALID_LAYOUT.
  absl::Status Recover(const LayoutRecord& record);

 private:
  struct Registered {
    LayoutRef layout;
    std::set<std::string> aliases;
  };
  // Waits until no change is on its way to disk.
  absl::Status WaitLocked(const Op& op) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  const Registered* FindLocked(TenantId tenant, absl::string_view name) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint32_t max_layouts_;
  const uint64_t max_bytes_;
  NameLog* const log_;
  const Clock* const clock_;
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
