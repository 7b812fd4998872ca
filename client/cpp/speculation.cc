// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/speculation.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/errors.h"

namespace statepool::client {
namespace {

constexpr uint64_t kPositionMax = uint64_t{1} << 53;

absl::Status BadPath(absl::string_view field, absl::string_view message) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_PATH", field, message);
}
absl::Status BadOption(absl::string_view field, absl::string_view message) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_OPTION", field, message);
}

absl::Status CheckBlock(uint64_t block, uint64_t computed, uint64_t scheduled) {
  if (block == 0 || block > kPositionMax) return BadOption("block", "a block has 1..2^53 tokens");
  if (computed > kPositionMax) return BadOption("computed", "at most 2^53 tokens");
  if (scheduled == 0 || scheduled > kPositionMax) return BadOption("scheduled", "a step has 1..2^53 tokens");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<uint32_t>> PathOf(absl::Span<const int32_t> parents, uint32_t accepted) {
  if (parents.empty() || parents.size() > kStepsMax) {
    return BadPath("parents", absl::StrCat("a tree has 1..", kStepsMax, " tokens, not ", parents.size()));
  }
  for (size_t step = 0; step < parents.size(); ++step) {
    if (parents[step] >= -1 && parents[step] < static_cast<int32_t>(step)) continue;
    return BadPath(absl::StrCat("parents[", step, "]"),
                   absl::StrCat("the parent of step ", step, " is a smaller step, or -1, not ", parents[step]));
  }
  if (accepted >= parents.size()) {
    return BadPath("accepted", absl::StrCat("the accepted step is 0..", parents.size() - 1, ", not ", accepted));
  }
  std::vector<uint32_t> path;
  for (auto step = static_cast<int32_t>(accepted); step >= 0; step = parents[static_cast<size_t>(step)])
    path.push_back(static_cast<uint32_t>(step));
  std::reverse(path.begin(), path.end());
  return path;
}

absl::StatusOr<uint32_t> ChainOf(absl::Span<const int32_t> parents) {
  for (size_t step = 0; step < parents.size(); ++step) {
    const int64_t before = static_cast<int64_t>(step) - 1;
    if (parents[step] == before) continue;
    return BadPath(absl::StrCat("parents[", step, "]"),
                   absl::StrCat("not a chain: the parent of step ", step, " is ", parents[step], ", not ", before));
  }
  const auto last = static_cast<uint32_t>(parents.empty() ? 0 : parents.size() - 1);
  const absl::StatusOr<std::vector<uint32_t>> path = PathOf(parents, last);
  if (!path.ok()) return path.status();
  return static_cast<uint32_t>(path->size());
}

absl::StatusOr<v1::AdvanceItem> AdvanceAlong(uint32_t row, absl::Span<const int32_t> parents, uint32_t accepted) {
  const absl::StatusOr<std::vector<uint32_t>> path = PathOf(parents, accepted);
  if (!path.ok()) return path.status();
  v1::AdvanceItem item;
  item.set_row(row);
  item.mutable_path()->Add(path->begin(), path->end());
  return item;
}

absl::StatusOr<BlockCopy> AlignBefore(uint64_t block, uint64_t computed, uint64_t scheduled, uint64_t stored) {
  if (absl::Status status = CheckBlock(block, computed, scheduled); !status.ok()) return status;
  if (stored > kPositionMax) return BadOption("stored", "at most 2^53 blocks");
  BlockCopy copy;
  if (stored != 0) {
    copy.source = static_cast<int64_t>(stored);
  } else if (computed > 0) {
    copy.source = static_cast<int64_t>((computed - 1) / block);
  }
  copy.target = static_cast<int64_t>((computed + scheduled - 1) / block);
  copy.copies = copy.source != -1 && copy.source != copy.target;
  return copy;
}

absl::StatusOr<BlockCache> AlignAfter(uint64_t block, uint64_t computed, uint64_t scheduled, uint64_t draft,
                                      uint64_t accepted) {
  if (absl::Status status = CheckBlock(block, computed, scheduled); !status.ok()) return status;
  if (draft >= scheduled) return BadOption("draft", absl::StrCat("fewer than the ", scheduled, " tokens are drafts"));
  if (accepted == 0 || accepted > draft + 1)
    return BadOption("accepted", absl::StrCat("1..", draft + 1, " tokens hold"));
  const uint64_t first = computed + scheduled - draft, last = first + accepted - 1;
  const uint64_t position = last / block * block;
  BlockCache cache;
  cache.caches = position >= first;
  cache.position = static_cast<int64_t>(position);
  cache.accepted = cache.caches ? 1 + position - first : 0;
  cache.block = static_cast<int64_t>(position / block) - 1;
  return cache;
}

}  // namespace statepool::client
