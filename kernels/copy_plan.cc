// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "kernels/copy_plan.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace statepool {
namespace {

constexpr uint64_t kLineBytes = 64;
constexpr uint64_t kVectorBytes = 16;
// Shorter runs are written through the cache: their first and last lines would be most of them.
constexpr uint64_t kStreamBytes = 1024;
// How far the reads go before the copy: waiting for memory is most of it, and the cache's own foresight ends at a page.
constexpr ptrdiff_t kAheadBytes = 8 << 10;
// What several rows get before the state is read on: stays in the second cache, and leaves transposed axes long enough
// for tiles.
constexpr uint64_t kBlockBytes = 128 << 10;

// A sum of products that may exceed 64 bits: then it is at most nothing.
class Sum {
 public:
  explicit Sum(uint64_t first) : value_(first) {}
  void Add(uint64_t a, uint64_t b = 1) {
    uint64_t product = 0;
    if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(value_, product, &value_)) fits_ = false;
  }
  bool IsAtMost(uint64_t limit) const { return fits_ && value_ <= limit; }

 private:
  uint64_t value_;
  bool fits_ = true;
};

// How long the segment is; nothing: it is longer than bytes_max, or no segment of this arena.
std::optional<uint64_t> CheckedBytes(const CopySegment& segment, uint64_t bytes_max, const CopyArena& arena) {
  const uint32_t element = segment.element_bytes;
  if (element != 1 && element != 2 && element != 4 && element != 8) return std::nullopt;
  Sum end(segment.arena_offset);
  end.Add(element);
  end.Add(arena.rows - 1, segment.row_stride);
  end.Add(arena.accepted_max - 1, segment.accept_stride);
  uint64_t bytes = element;
  for (const CopyAxis& axis : segment.axes) {
    if (axis.size == 0 || __builtin_mul_overflow(bytes, axis.size, &bytes)) return std::nullopt;
    end.Add(axis.size - 1, axis.row_stride);
  }
  Sum clear_end(0);
  if (segment.clear_bytes != 0) {
    clear_end.Add(segment.clear_offset);
    clear_end.Add(segment.clear_bytes);
    clear_end.Add(arena.rows - 1, segment.row_stride);
  }
  if (bytes > bytes_max || !end.IsAtMost(arena.bytes) || !clear_end.IsAtMost(arena.bytes)) return std::nullopt;
  return bytes;
}

// Between two copies, so that the second is of what the first one read, and not of its source again.
void PinCopy() { std::atomic_signal_fence(std::memory_order_seq_cst); }

#ifdef __SSE2__
// Copies with non-temporal stores, which don't read the destination first: whole lines, and what is cut off at the ends
// without. With `mirror` the same bytes go there too, each read once, whoever writes to `from` meanwhile. `from_end`:
// end of what will be read on from here, now or by the next call. `next`: where reading goes on after that, for at
// least kAheadBytes; null: not known.
template <bool kMirror>
void StreamCopy(char* to, char* mirror, const char* from, uint64_t bytes, const char* from_end, const char* next) {
  const auto copy_short = [&](uint64_t n) {
    if constexpr (kMirror) {
      std::memcpy(mirror, from, n);
      PinCopy();
      std::memcpy(to, mirror, n);
      mirror += n;
    } else {
      std::memcpy(to, from, n);
    }
    to += n, from += n, bytes -= n;
  };
  copy_short(std::min<uint64_t>(-reinterpret_cast<uintptr_t>(to) % kLineBytes, bytes));
  for (; bytes >= kLineBytes; to += kLineBytes, from += kLineBytes, bytes -= kLineBytes) {
    const ptrdiff_t left = from_end - from;
    if (left > kAheadBytes) _mm_prefetch(from + kAheadBytes, _MM_HINT_T0);
    else if (next != nullptr) _mm_prefetch(next + (kAheadBytes - left), _MM_HINT_T0);
    const auto* source = reinterpret_cast<const __m128i*>(from);
    auto* line = reinterpret_cast<__m128i*>(to);
    __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
    __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
    if constexpr (kMirror) {
      asm volatile("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d));  // as PinCopy, for registers
      auto* second = reinterpret_cast<__m128i*>(mirror);
      _mm_storeu_si128(second, a), _mm_storeu_si128(second + 1, b);
      _mm_storeu_si128(second + 2, c), _mm_storeu_si128(second + 3, d);
      mirror += kLineBytes;
    }
    _mm_stream_si128(line, a), _mm_stream_si128(line + 1, b);
    _mm_stream_si128(line + 2, c), _mm_stream_si128(line + 3, d);
  }
  copy_short(bytes);
}

// Non-temporal stores are not ordered by a release: this orders them for whoever synchronizes with this thread after.
void StreamFence() { _mm_sfence(); }
#else
template <bool kMirror>
void StreamCopy(char* to, char* mirror, const char* from, uint64_t bytes, const char*, const char*) {
  if constexpr (kMirror) std::memcpy(mirror, from, bytes);
  PinCopy();
  std::memcpy(to, kMirror ? mirror : from, bytes);
}
void StreamFence() {}
#endif

void CopyRun(char* to, const char* from, uint64_t bytes, bool stream) {
  if (stream && bytes >= kStreamBytes) StreamCopy<false>(to, nullptr, from, bytes, from + bytes, nullptr);
  else std::memcpy(to, from, bytes);
}

struct Loop {
  uint64_t count = 0, to_stride = 0, from_stride = 0;
};

// The halves of two vectors, element by element in turn.
template <typename Vector, size_t... i>
Vector Interleave(Vector a, Vector b, size_t half, std::index_sequence<i...>) {
  constexpr int kCount = sizeof...(i);
  return half == 0 ? __builtin_shufflevector(a, b, (i / 2 + i % 2 * kCount)...)
                   : __builtin_shufflevector(a, b, (kCount / 2 + i / 2 + i % 2 * kCount)...);
}

// A square of elements, as many as a vector has: element j of from's vector i becomes element i of to's vector j.
template <typename Element>
void TransposeSquare(char* to, uint64_t to_stride, const char* from, uint64_t from_stride) {
  constexpr size_t kCount = kVectorBytes / sizeof(Element);
  typedef Element Vector __attribute__((vector_size(kVectorBytes)));
  Vector now[kCount], next[kCount];
#pragma GCC unroll 16
  for (size_t i = 0; i < kCount; ++i) std::memcpy(&now[i], from + i * from_stride, kVectorBytes);
#pragma GCC unroll 4
  for (size_t done = 1; done < kCount; done *= 2) {
#pragma GCC unroll 16
    for (size_t i = 0; i < kCount; ++i) {
      next[i] = Interleave(now[i / 2], now[i / 2 + kCount / 2], i % 2, std::make_index_sequence<kCount>());
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < kCount; ++i) now[i] = next[i];
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < kCount; ++i) std::memcpy(to + i * to_stride, &now[i], kVectorBytes);
}

// Nothing: a run that is no element of a vector.
template <uint64_t kBytes>
struct ElementOf {};
template <>
struct ElementOf<1> {
  using Type = uint8_t;
};
template <>
struct ElementOf<2> {
  using Type = uint16_t;
};
template <>
struct ElementOf<4> {
  using Type = uint32_t;
};
template <>
struct ElementOf<8> {
  using Type = uint64_t;
};

template <uint64_t kBytes>
void CopyTile(const Loop& outer, const Loop& inner, char* to, const char* from) {
  if constexpr (requires { typename ElementOf<kBytes>::Type; }) {
    constexpr uint64_t kSide = kVectorBytes / kBytes;
    if (outer.from_stride == kBytes && inner.to_stride == kBytes && outer.count >= kSide && inner.count >= kSide) {
      // What the last square has in common with the one before is copied twice.
      for (uint64_t i = 0; i < outer.count; i += kSide) {
        const uint64_t row = std::min(i, outer.count - kSide);
        for (uint64_t j = 0; j < inner.count; j += kSide) {
          const uint64_t column = std::min(j, inner.count - kSide);
          TransposeSquare<typename ElementOf<kBytes>::Type>(
              to + row * outer.to_stride + column * kBytes, outer.to_stride,
              from + row * kBytes + column * inner.from_stride, inner.from_stride);
        }
      }
      return;
    }
  }
  for (uint64_t i = 0; i < outer.count; ++i) {
    char* const t = to + i * outer.to_stride;
    const char* const f = from + i * outer.from_stride;
    for (uint64_t j = 0; j < inner.count; ++j) std::memcpy(t + j * inner.to_stride, f + j * inner.from_stride, kBytes);
  }
}

// Two loops over runs of kBytes, in tiles that touch few lines on either side.
template <uint64_t kBytes>
void CopyTiles(Loop outer, Loop inner, char* to, const char* from) {
  constexpr uint64_t kEdge = std::clamp<uint64_t>(256 / kBytes, 8, 64);
  // The innermost loop stays in one line of the destination, for stores wait for one another, unless it is short.
  constexpr uint64_t kShort = 8;
  const bool inner_is_near = inner.to_stride <= outer.to_stride;
  if (inner_is_near ? inner.count < kShort && inner.count < outer.count
                    : outer.count >= kShort || outer.count > inner.count) {
    std::swap(outer, inner);
  }
  for (uint64_t i = 0; i < outer.count; i += kEdge) {
    for (uint64_t j = 0; j < inner.count; j += kEdge) {
      CopyTile<kBytes>({std::min(kEdge, outer.count - i), outer.to_stride, outer.from_stride},
                       {std::min(kEdge, inner.count - j), inner.to_stride, inner.from_stride},
                       to + i * outer.to_stride + j * inner.to_stride,
                       from + i * outer.from_stride + j * inner.from_stride);
    }
  }
}

using Tiles = void (*)(Loop outer, Loop inner, char* to, const char* from);

// Null: for runs that are worth a call of memcpy each. 3, 6 and 12 are elements of a convolution's usual three taps.
Tiles TilesOf(uint64_t run_bytes) {
  switch (run_bytes) {
    case 1: return CopyTiles<1>;
    case 2: return CopyTiles<2>;
    case 3: return CopyTiles<3>;
    case 4: return CopyTiles<4>;
    case 6: return CopyTiles<6>;
    case 8: return CopyTiles<8>;
    case 12: return CopyTiles<12>;
    case 16: return CopyTiles<16>;
    default: return nullptr;
  }
}

}  // namespace

// Walks over a range of one part. Offsets wrap round: only those that a run begins at are places of either side.
class CopyPlan::Walk {
 public:
  enum Direction { kToRow, kToState };

  Walk(const Part& part, Direction direction, char* to, const char* from, bool stream)
      : axes_(part.axes), direction_(direction), to_(to), from_(from), stream_(stream) {}

  // Bytes [begin, end) of one element of the axes before `level`, whose first byte is at these offsets.
  void Range(size_t level, uint64_t begin, uint64_t end, uint64_t to, uint64_t from) const {
    if (level == axes_.size() - 1) return CopyRun(to_ + (to + begin), from_ + (from + begin), end - begin, stream_);
    const uint64_t stride = axes_[level].state_stride;
    const uint64_t head = begin % stride, tail = end % stride;
    uint64_t first = begin / stride;
    const uint64_t last = end / stride;
    const Loop loop = LoopOf(level);
    if (first == last) {
      if (head < tail) Range(level + 1, head, tail, to + first * loop.to_stride, from + first * loop.from_stride);
      return;
    }
    if (head != 0) {
      Range(level + 1, head, stride, to + first * loop.to_stride, from + first * loop.from_stride);
      ++first;
    }
    if (first < last) Whole(level, last - first, to + first * loop.to_stride, from + first * loop.from_stride);
    if (tail != 0) Range(level + 1, 0, tail, to + last * loop.to_stride, from + last * loop.from_stride);
  }

 private:
  using Loops = absl::InlinedVector<Loop, 6>;

  Loop LoopOf(size_t level) const {
    const Axis& axis = axes_[level];
    return direction_ == kToRow ? Loop{axis.size, axis.row_stride, axis.state_stride}
                                : Loop{axis.size, axis.state_stride, axis.row_stride};
  }

  // `count` whole elements of the axis `level`, from these offsets.
  void Whole(size_t level, uint64_t count, uint64_t to, uint64_t from) const {
    const size_t runs = axes_.size() - 2;
    const Tiles tiles = TilesOf(axes_.back().size);
    // The axis that goes into tiles with the innermost: where the row's runs are nearest to one another.
    size_t across = runs;
    for (size_t axis = level; tiles != nullptr && axis < runs; ++axis) {
      if (axes_[axis].row_stride < axes_[across].row_stride) across = axis;
    }
    Loops loops;
    const auto add = [&](size_t axis) {
      loops.push_back(LoopOf(axis));
      if (axis == level) loops.back().count = count;
    };
    for (size_t axis = level; axis < runs; ++axis) {
      if (axis != across) add(axis);
    }
    if (across == runs) loops.push_back({1, 0, 0});
    else add(across);
    add(runs);
    Nest(loops, tiles, to_ + to, from_ + from);
  }

  void Nest(absl::Span<const Loop> loops, Tiles tiles, char* to, const char* from) const {
    const Loop& outer = loops[0];
    if (loops.size() > 2) {
      for (uint64_t i = 0; i < outer.count; ++i) {
        Nest(loops.subspan(1), tiles, to + i * outer.to_stride, from + i * outer.from_stride);
      }
    } else if (tiles != nullptr) {
      tiles(outer, loops[1], to, from);
    } else {
      for (uint64_t i = 0; i < loops[1].count; ++i) {
        CopyRun(to + i * loops[1].to_stride, from + i * loops[1].from_stride, axes_.back().size, stream_);
      }
    }
  }

  const absl::Span<const Axis> axes_;
  const Direction direction_;
  char* const to_;
  const char* const from_;
  const bool stream_;
};

uint64_t CopySegment::Bytes() const {
  uint64_t bytes = element_bytes;
  for (const CopyAxis& axis : axes) bytes *= axis.size;
  return bytes;
}

std::optional<CopyPlan> CopyPlan::Checked(std::vector<CopySegment> segments, uint64_t state_bytes,
                                          const CopyArena& arena) {
  if (arena.rows == 0 || arena.accepted_max == 0 || state_bytes > arena.bytes) return std::nullopt;
  uint64_t end = 0;
  for (const CopySegment& segment : segments) {
    const std::optional<uint64_t> bytes = CheckedBytes(segment, state_bytes - end, arena);
    if (segment.state_offset != end || !bytes) return std::nullopt;
    end += *bytes;
  }
  if (end != state_bytes) return std::nullopt;
  return CopyPlan(std::move(segments), state_bytes);
}

CopyPlan::CopyPlan(std::vector<CopySegment> segments, uint64_t state_bytes)
    : segments_(std::move(segments)), state_bytes_(state_bytes) {
  parts_.reserve(segments_.size());
  uint64_t end = 0;
  for (const CopySegment& segment : segments_) {
    assert(segment.state_offset >= end);
    parts_.push_back(PartOf(segment));
    segment_bytes_ += segment.Bytes();
    end = segment.state_offset + segment.Bytes();
  }
  assert(end <= state_bytes_);
  (void)end;
}

CopyPlan::Part CopyPlan::PartOf(const CopySegment& segment) {
  Part part = {segment.state_offset, segment.Bytes(),       segment.arena_offset,
               segment.row_stride,   segment.accept_stride, {}};
  // Innermost first, and turned round at the end.
  part.axes.push_back({segment.element_bytes, 1, 1});
  for (size_t i = segment.axes.size(); i-- > 0;) {
    const CopyAxis& axis = segment.axes[i];
    if (axis.size == 1) continue;
    Axis& inner = part.axes.back();
    if (axis.row_stride == inner.size * inner.row_stride) inner.size *= axis.size;
    else part.axes.push_back({axis.size, inner.size * inner.state_stride, axis.row_stride});
  }
  std::reverse(part.axes.begin(), part.axes.end());
  return part;
}

template <typename Visit>
void CopyPlan::ForRange(uint64_t begin, uint64_t end, Visit visit) const {
  assert(begin <= end && end <= state_bytes_);
  auto part = std::partition_point(parts_.begin(), parts_.end(),
                                   [begin](const Part& p) { return p.state_offset + p.bytes <= begin; });
  for (; part != parts_.end() && part->state_offset < end; ++part) {
    visit(*part, std::max(begin, part->state_offset) - part->state_offset,
          std::min(end - part->state_offset, part->bytes));
  }
}

void CopyPlan::Gather(const char* state, uint64_t begin, uint64_t end, char* arena, absl::Span<const uint32_t> rows,
                      CopyHint hint) const {
  const bool stream = hint == CopyHint::kStreaming;
  const auto copy = [&](uint64_t from, uint64_t to, uint32_t row) {
    ForRange(from, to, [&](const Part& part, uint64_t first, uint64_t last) {
      Walk(part, Walk::kToRow, arena, state, stream)
          .Range(0, first, last, part.arena_offset + row * part.row_stride, part.state_offset);
    });
  };
  if (rows.size() == 1) {
    copy(begin, end, rows[0]);
  } else {
    for (uint64_t next; begin < end; begin = next) {
      next = std::min(end, (begin / kBlockBytes + 1) * kBlockBytes);
      for (const uint32_t row : rows) copy(begin, next, row);
    }
  }
  if (stream) StreamFence();
}

void CopyPlan::Clear(char* arena, uint32_t row) const {
  for (const CopySegment& segment : segments_) {
    if (segment.clear_bytes == 0) continue;
    std::memset(arena + segment.clear_offset + row * segment.row_stride, 0, segment.clear_bytes);
  }
}

void CopyPlan::Scatter(const char* arena, uint32_t row, uint32_t accepted, uint64_t begin, uint64_t end, char* out,
                       CopyHint hint) const {
  const bool stream = hint == CopyHint::kStreaming;
  assert(accepted >= 1);
  ForRange(begin, end, [&](const Part& part, uint64_t first, uint64_t last) {
    const uint64_t from = part.arena_offset + row * part.row_stride + (accepted - 1) * part.accept_stride;
    Walk(part, Walk::kToState, out, arena, stream).Range(0, first, last, part.state_offset - begin, from);
  });
  if (stream) StreamFence();
}

void CopyPlan::ScatterLeaves(const char* arena, uint32_t row, uint32_t accepted, uint64_t first, uint64_t last,
                             char* state, LeafHash* hashes, CopyHint hint) const {
  const bool stream = hint == CopyHint::kStreaming;
  // On the heap: threads that never scatter pay nothing.
  struct alignas(kLineBytes) Leaf {
    char bytes[kLeafBytes];
  };
  thread_local const auto leaf = std::make_unique_for_overwrite<Leaf>();
  const auto place_of = [&](const Part& part) {
    return part.arena_offset + row * part.row_stride + (accepted - 1) * part.accept_stride;
  };
  assert(is_whole());
  for (uint64_t i = first; i < last; ++i) {
    const uint64_t begin = i * kLeafBytes, end = std::min<uint64_t>(begin + kLeafBytes, state_bytes_);
    ForRange(begin, end, [&](const Part& part, uint64_t part_begin, uint64_t part_end) {
      const uint64_t at = part.state_offset + part_begin, bytes = part_end - part_begin;
      const uint64_t from = place_of(part);
      char* const copy = leaf->bytes + (at - begin);
      if (stream && bytes >= kStreamBytes && part.axes.size() == 1) {
        const Part* const after = &part + 1;
        const bool goes_on = after != parts_.data() + parts_.size() && after->bytes >= kAheadBytes;
        StreamCopy<true>(state + at, copy, arena + from + part_begin, bytes, arena + from + part.bytes,
                         goes_on ? arena + place_of(*after) : nullptr);
      } else {
        Walk(part, Walk::kToState, copy, arena, false).Range(0, part_begin, part_end, -part_begin, from);
        PinCopy();
        CopyRun(state + at, copy, bytes, stream);
      }
    });
    hashes[i - first] = HashLeaf({leaf->bytes, end - begin});
  }
  if (stream) StreamFence();
}

}  // namespace statepool
