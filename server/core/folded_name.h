// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// FoldedName: a name at rest, packed into one block of memory.
//
// Most names of a large pool are at rest: recorded, their states on disk alone, and nobody looks at them. The objects
// that would stand for such a name (Name, Version, an image of the ImageStore) can all be made again from a few
// numbers. A folded name is these numbers; nothing is lost by folding a name and unfolding it again.
//
// Whoever folds a name takes its images over from the ImageStore (ImageStore::Disown): as long as it is folded, it
// alone stands for their bytes in the cold store. When it is unfolded they are adopted again. So a name is never
// dropped while it is folded, but for the end of the store.
//
// Which names may be folded and when, is the Store's business (Store::FoldIdle).
#ifndef STATEPOOL_SERVER_CORE_FOLDED_NAME_H_
#define STATEPOOL_SERVER_CORE_FOLDED_NAME_H_

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "server/core/name_table.h"

namespace statepool {

// What a folded name holds, unpacked.
struct RestingName {
  NameKey key;
  NameState state;                        // but for its ring, which is empty
  std::vector<RecordedVersion> versions;  // the ring, oldest first
  size_t recorded = 0;                    // how many of them its newest record has, the head among them
  MonoTime last_used = 0;
  uint32_t forks = 0;

  // The newest record is of this very state.
  Revision durable_revision() const { return state.revision; }
  MonoTime Deadline() const { return DeadlineOf(state, last_used); }
};

// Immutable; lives behind a FoldedPtr. Times are kept to the nanosecond, as in a record.
class FoldedName {
 public:
  static FoldedPtr Pack(const RestingName& name);

  RestingName Unpack() const;
  NameTable::View view() const;
  const LayoutRef& layout() const { return layout_; }
  Durability durability() const;

 private:
  friend struct FoldedDeleter;

  explicit FoldedName(LayoutRef layout) : layout_(std::move(layout)) {}
  ~FoldedName() = default;
  const char* bytes() const { return reinterpret_cast<const char*>(this + 1); }

  const LayoutRef layout_;
  // The packed bytes follow.
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_FOLDED_NAME_H_
