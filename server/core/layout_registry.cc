// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/layout_registry.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/core/error.h"

namespace statepool {
namespace {

bool LooksLikeFingerprint(absl::string_view name) {
  return name.size() == 64 && std::all_of(name.begin(), name.end(), absl::ascii_isxdigit);
}

absl::Status ValidateAlias(absl::string_view alias) {
  if (absl::Status s = ValidateName(alias, "alias"); !s.ok()) return s;
  if (alias.size() > kMaxAliasBytes || LooksLikeFingerprint(alias)) {
    return Error(absl::StatusCode::kInvalidArgument, "INVALID_NAME",
                 absl::StrCat("a layout's alias has at most ", kMaxAliasBytes,
                              " bytes and does not look like a fingerprint"))
        .Field("alias");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status LayoutRegistry::WaitLocked(const Op& op) {
  while (committing_) {
    // Short waits, so that a cancellation and an injected clock are noticed; whoever is through signals.
    committed_.WaitFor(&mu_, std::chrono::milliseconds(50));
    if (absl::Status s = op.Check(*clock_); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::StatusOr<LayoutRegistry::Entry> LayoutRegistry::Register(const Op& op, LayoutRef layout,
                                                               absl::string_view alias) {
  const TenantId tenant = op.tenant;
  if (!alias.empty()) {
    if (absl::Status s = ValidateAlias(alias); !s.ok()) return s;
  }
  MutexLock lock(&mu_);
  if (absl::Status s = WaitLocked(op); !s.ok()) return s;
  const std::pair<TenantId, std::string> key(tenant, layout->fingerprint());
  if (!alias.empty()) {
    const auto taken = aliases_.find({tenant, std::string(alias)});
    if (taken != aliases_.end() && taken->second != layout->fingerprint()) {
      return Error(absl::StatusCode::kAlreadyExists, "LAYOUT_ALIAS_TAKEN",
                   absl::StrCat("the alias '", alias,
                                "' belongs to another layout; choose another alias, or the layout that it names"))
          .Field("alias")
          .Meta("fingerprint", taken->second);
    }
  }
  const auto known = layouts_.find(key);
  if (known == layouts_.end() && layouts_.size() >= max_layouts_) {
    return Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_LAYOUTS", "the table of layouts is full")
        .Meta("limit", max_layouts_);
  }
  if (known == layouts_.end() && bytes_ + layout->canonical().size() > max_bytes_) {
    return Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_LAYOUTS",
                 "all layouts together, with their initial data, would have too many bytes")
        .Meta("limit", max_bytes_);
  }
  Registered registered = known == layouts_.end() ? Registered{layout, {}} : known->second;
  const bool changes = known == layouts_.end() || (!alias.empty() && !registered.aliases.contains(std::string(alias)));
  if (!alias.empty()) registered.aliases.insert(std::string(alias));
  const std::vector<std::string> aliases(registered.aliases.begin(), registered.aliases.end());
  if (aliases.size() > max_layouts_) {
    return Error(absl::StatusCode::kResourceExhausted, "TOO_MANY_LAYOUTS", "the layout has too many aliases")
        .Meta("limit", max_layouts_);
  }
  if (changes) {
    committing_ = true;
    absl::Status committed;
    {
      MutexUnlock unlock(&mu_);
      committed = log_->CommitLayout({tenant, registered.layout->canonical(), aliases});
    }
    committing_ = false;
    committed_.SignalAll();
    if (!committed.ok()) return committed;
    if (!alias.empty()) aliases_[{tenant, std::string(alias)}] = layout->fingerprint();
    if (known == layouts_.end()) bytes_ += layout->canonical().size();
    layouts_[key] = registered;
  }
  return Entry{registered.layout, aliases};
}

const LayoutRegistry::Registered* LayoutRegistry::FindLocked(TenantId tenant, absl::string_view name) const {
  std::pair<TenantId, std::string> key(tenant, std::string(name));
  if (const auto alias = aliases_.find(key); alias != aliases_.end()) key.second = alias->second;
  const auto found = layouts_.find(key);
  return found == layouts_.end() || found->second.layout.get() == deleting_ ? nullptr : &found->second;
}

bool LayoutRegistry::IsRegistered(TenantId tenant, const Layout& layout) const {
  MutexLock lock(&mu_);
  const Registered* found = FindLocked(tenant, layout.fingerprint());
  return found != nullptr && found->layout.get() == &layout;
}

absl::StatusOr<LayoutRef> LayoutRegistry::Delete(const Op& op, absl::string_view name, Unused unused) {
  {
    MutexLock lock(&mu_);
    if (absl::Status s = WaitLocked(op); !s.ok()) return s;
    committing_ = true;  // also keeps what is found here in its place
  }
  absl::StatusOr<LayoutRef> layout = Find(op.tenant, name);
  absl::Status status = layout.status();
  if (layout.ok()) {
    status = unused(**layout, [&] {
      MutexLock lock(&mu_);
      deleting_ = layout->get();
    });
    if (status.ok()) status = log_->DeleteLayout(op.tenant, (*layout)->fingerprint());
  }
  MutexLock lock(&mu_);
  if (status.ok()) {
    const auto found = layouts_.find({op.tenant, (*layout)->fingerprint()});
    for (const std::string& alias : found->second.aliases) aliases_.erase({op.tenant, alias});
    bytes_ -= (*layout)->canonical().size();
    layouts_.erase(found);
  }
  deleting_ = nullptr;
  committing_ = false;
  committed_.SignalAll();
  if (!status.ok()) return status;
  return layout;
}

absl::StatusOr<LayoutRef> LayoutRegistry::Find(TenantId tenant, absl::string_view name, absl::string_view field) const {
  if (name.empty()) {
    return Error(absl::StatusCode::kInvalidArgument, "MISSING_FIELD", "name a layout, by alias or fingerprint")
        .Field(field);
  }
  MutexLock lock(&mu_);
  if (const Registered* registered = FindLocked(tenant, name)) return registered->layout;
  return Error(
             absl::StatusCode::kNotFound, "LAYOUT_UNKNOWN",
             absl::StrCat("no layout ", ValidateName(name, field).ok() ? absl::StrCat("'", name, "'") : "of this name",
                          " is registered; RegisterLayout first"))
      .Field(field);
}

absl::StatusOr<LayoutRegistry::Entry> LayoutRegistry::Describe(TenantId tenant, absl::string_view name) const {
  absl::StatusOr<LayoutRef> layout = Find(tenant, name);
  if (!layout.ok()) return layout.status();
  MutexLock lock(&mu_);
  const auto found = layouts_.find({tenant, (*layout)->fingerprint()});
  if (found == layouts_.end()) return Entry{*layout, {}};  // deleted meanwhile
  return Entry{found->second.layout, {found->second.aliases.begin(), found->second.aliases.end()}};
}

std::vector<LayoutRegistry::Entry> LayoutRegistry::List(TenantId tenant) const {
  MutexLock lock(&mu_);
  std::vector<Entry> entries;
  for (auto it = layouts_.lower_bound({tenant, ""}); it != layouts_.end() && it->first.first == tenant; ++it) {
    if (it->second.layout.get() == deleting_) continue;
    entries.push_back({it->second.layout, {it->second.aliases.begin(), it->second.aliases.end()}});
  }
  return entries;
}

absl::Status LayoutRegistry::Recover(const LayoutRecord& record) {
  absl::StatusOr<LayoutRef> layout = Layout::FromCanonical(record.canonical);
  if (!layout.ok()) return layout.status();
  MutexLock lock(&mu_);
  Registered& registered = layouts_[{record.tenant, (*layout)->fingerprint()}];
  if (registered.layout == nullptr) bytes_ += (*layout)->canonical().size();
  registered.layout = *layout;
  for (const std::string& alias : record.aliases) {
    registered.aliases.insert(alias);
    aliases_[{record.tenant, alias}] = (*layout)->fingerprint();
  }
  return absl::OkStatus();
}

}  // namespace statepool
