// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "kernels/copy_tiles.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace statepool {
namespace {

// Runs from here on are worth tiles of their own.
constexpr uint64_t kLongRunBytes = 2048;
// Two axes that are less than this together are not worth shared memory.
constexpr uint64_t kTransposeBytes = 1024;
constexpr uint64_t kWordBytes = 16;

// Bytes [begin, end) of row 0.
struct Range {
  uint64_t begin = 0, end = 0;
};

using Axis = CopyPlan::Axis;

// The most that a tile has: bytes, and those of shared memory that a transposed one takes.
struct Limits {
  uint32_t tile_bytes, transposed_bytes;
};

// Cuts what lies along some axes, and appends the tiles.
class TileCutter {
 public:
  TileCutter(Limits limits, std::vector<CopyTile>* tiles, std::vector<TileAxis>* axes)
      : limits_(limits), tiles_(*tiles), axes_(*axes) {}

  // All of these axes, as a part of a plan has them; `tile` is where they begin.
  absl::Status Cut(const CopyTile& tile, absl::Span<const Axis> all_axes) {
    const uint64_t run = all_axes.back().size;
    const absl::Span<const Axis> axes = all_axes.first(all_axes.size() - 1);
    if (axes.empty() || run >= kLongRunBytes) {
      ForEach(tile, axes, [&](const CopyTile& at) { AddLinear(at, run); });
      return absl::OkStatus();
    }
    if (CutTransposed(tile, run, axes)) return absl::OkStatus();
    uint64_t runs = 1;
    for (const Axis& axis : axes) runs *= axis.size;
    if (runs > std::numeric_limits<uint32_t>::max()) {
      return absl::UnimplementedError(
          absl::StrCat("a segment of ", runs, " runs of ", run, " bytes: too many for a device"));
    }
    uint64_t offsets = run;
    const size_t first_axis = axes_.size();
    for (size_t i = axes.size(); i-- > 0;) {
      axes_.push_back(TileAxisOf(static_cast<uint32_t>(axes[i].size), axes[i].row_stride));
      offsets |= axes[i].row_stride;
    }
    AddRuns(tile, run, runs, first_axis, TileAlignmentOf(offsets));
    return absl::OkStatus();
  }

  // Bytes [begin, end) of them, counted in the state.
  absl::Status CutRange(const CopyTile& tile, absl::Span<const Axis> axes, uint64_t begin, uint64_t end) {
    const auto at = [&](uint64_t index) {
      CopyTile moved = tile;
      moved.state_offset += index * axes[0].state_stride;
      moved.arena_offset += index * axes[0].row_stride;
      return moved;
    };
    if (axes.size() == 1) {
      AddLinear(at(begin), end - begin);
      return absl::OkStatus();
    }
    const uint64_t stride = axes[0].state_stride, head = begin % stride, tail = end % stride, last = end / stride;
    uint64_t first = begin / stride;
    if (first == last) return CutRange(at(first), axes.subspan(1), head, tail);
    absl::Status status;
    if (head != 0) status = CutRange(at(first++), axes.subspan(1), head, stride);
    if (status.ok() && first < last) {
      absl::InlinedVector<Axis, 4> whole(axes.begin(), axes.end());
      whole[0].size = last - first;
      status = Cut(at(first), whole);
    }
    if (status.ok() && tail != 0) status = CutRange(at(last), axes.subspan(1), 0, tail);
    return status;
  }

  void AddLinear(const CopyTile& first, uint64_t bytes) {
    CopyTile tile = first;
    tile.kind = TileKind::kLinear;
    for (; bytes > 0; bytes -= tile.bytes) {
      tile.bytes = static_cast<uint32_t>(std::min<uint64_t>(bytes, limits_.tile_bytes));
      tiles_.push_back(tile);
      tile.state_offset += tile.bytes;
      tile.arena_offset += tile.bytes;
    }
  }

  // REQUIRES: run < kLongRunBytes; the axes from first_axis to the last.
  void AddRuns(const CopyTile& first_tile, uint64_t run, uint64_t runs, size_t first_axis, uint32_t alignment) {
    CopyTile tile = first_tile;
    tile.kind = TileKind::kRuns;
    tile.run_bytes = static_cast<uint16_t>(run);
    tile.runs = {0, static_cast<uint32_t>(first_axis), static_cast<uint32_t>(axes_.size() - first_axis), alignment};
    for (uint64_t first = 0, count; first < runs; first += count) {
      count = std::min(limits_.tile_bytes / run, runs - first);
      tile.runs.first = static_cast<uint32_t>(first);
      tile.bytes = static_cast<uint32_t>(count * run);
      tiles_.push_back(tile);
      tile.state_offset += tile.bytes;
    }
  }

 private:
  // Calls visit(tile) for each element of these axes.
  template <typename Visit>
  static void ForEach(const CopyTile& first, absl::Span<const Axis> axes, const Visit& visit) {
    if (axes.empty()) return visit(first);
    CopyTile tile = first;
    for (uint64_t i = 0; i < axes[0].size; ++i) {
      ForEach(tile, axes.subspan(1), visit);
      tile.state_offset += axes[0].state_stride;
      tile.arena_offset += axes[0].row_stride;
    }
  }

  // False: these axes are better copied as runs.
  bool CutTransposed(const CopyTile& first, uint64_t run, absl::Span<const Axis> axes) {
    if (!std::has_single_bit(run) || run > kWordBytes) return false;
    const size_t x = axes.size() - 1;
    size_t y = x;
    for (size_t i = 0; i < x; ++i) {
      if (axes[i].row_stride < axes[y].row_stride) y = i;
    }
    if (y == x) return false;
    const uint64_t elements = limits_.tile_bytes / run;
    const uint64_t side = std::bit_floor(elements) >> (std::bit_width(elements) / 2);
    uint64_t x_size = std::min(axes[x].size, side);
    const uint64_t y_size = std::min(axes[y].size, elements / x_size);
    x_size = std::min({axes[x].size, elements / y_size, limits_.transposed_bytes / ((y_size | 1) * run)});
    if (x_size * y_size * run < kTransposeBytes) return false;
    absl::InlinedVector<Axis, 4> others;
    for (size_t i = 0; i < x; ++i) {
      if (i != y) others.push_back(axes[i]);
    }
    CopyTile tile = first;
    tile.kind = TileKind::kTransposed;
    tile.run_bytes = static_cast<uint16_t>(run);
    tile.transposed = {axes[y].state_stride, axes[x].row_stride, axes[y].row_stride};
    ForEach(tile, others, [&](const CopyTile& at) {
      for (uint64_t i = 0; i < axes[y].size; i += y_size) {
        for (uint64_t j = 0; j < axes[x].size; j += x_size) {
          CopyTile box = at;
          box.state_offset += i * axes[y].state_stride + j * axes[x].state_stride;
          box.arena_offset += i * axes[y].row_stride + j * axes[x].row_stride;
          box.size.x = static_cast<uint16_t>(std::min(x_size, axes[x].size - j));
          box.size.y = static_cast<uint16_t>(std::min(y_size, axes[y].size - i));
          tiles_.push_back(box);
        }
      }
    });
    return true;
  }

  const Limits limits_;
  std::vector<CopyTile>& tiles_;
  std::vector<TileAxis>& axes_;
};

CopyTile BeginOf(const CopyPlan::Part& part) {
  CopyTile tile;
  tile.state_offset = part.state_offset;
  tile.arena_offset = part.arena_offset;
  tile.row_stride = part.row_stride;
  tile.accept_stride = part.accept_stride;
  return tile;
}

class Cutter {
 public:
  explicit Cutter(const CopyPlan& plan)
      : plan_(plan), cutter_({kTileBytes, kTransposedTileBytes}, &result_.tiles, &result_.axes) {}

  absl::StatusOr<CopyTiles> Cut() && {
    for (const CopyPlan::Part& part : plan_.parts()) {
      if (absl::Status status = cutter_.Cut(BeginOf(part), part.axes); !status.ok()) return status;
    }
    result_.copy_count = result_.tiles.size();
    for (const CopyTile& tile : result_.tiles) result_.has_transposed |= tile.kind == TileKind::kTransposed;
    CutCleared();
    return std::move(result_);
  }

 private:
  struct Cleared {
    Range range;
    uint64_t row_stride = 0;
  };

  void CutCleared() {
    std::vector<Cleared> cleared;
    for (const CopySegment& segment : plan_.segments()) {
      if (segment.clear_bytes == 0) continue;
      cleared.push_back({{segment.clear_offset, segment.clear_offset + segment.clear_bytes}, segment.row_stride});
    }
    if (cleared.empty()) return;
    std::sort(cleared.begin(), cleared.end(),
              [](const Cleared& a, const Cleared& b) { return a.range.begin < b.range.begin; });
    // Ranges seldom overlap; when they do, one that began earlier may end later.
    std::vector<uint64_t> ends;
    for (const Cleared& c : cleared) ends.push_back(std::max(c.range.end, ends.empty() ? 0 : ends.back()));
    std::vector<Range> copied;
    for (const CopySegment& segment : plan_.segments()) {
      uint64_t end = segment.arena_offset + segment.element_bytes;
      for (const CopyAxis& axis : segment.axes) end += (axis.size - 1) * axis.row_stride;
      const auto after =
          std::partition_point(cleared.begin(), cleared.end(), [&](const Cleared& c) { return c.range.begin < end; });
      if (after != cleared.begin() && ends[after - cleared.begin() - 1] > segment.arena_offset)
        AddPlaces(segment, &copied);
    }
    std::sort(copied.begin(), copied.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    auto next = copied.begin();
    uint64_t at = 0;  // all before it is done
    for (const Cleared& c : cleared) {
      for (at = std::max(at, c.range.begin); at < c.range.end;) {
        while (next != copied.end() && next->end <= at) ++next;
        const uint64_t gap_end = next == copied.end() ? c.range.end : std::min(next->begin, c.range.end);
        if (gap_end > at) AddGap({at, gap_end}, c.row_stride);
        at = next == copied.end() || next->begin >= c.range.end ? c.range.end : std::max(gap_end, next->end);
      }
    }
    FlushGaps();
  }

  // What the segment's state covers of row 0.
  static void AddPlaces(const CopySegment& segment, std::vector<Range>* places) {
    absl::InlinedVector<CopyAxis, 4> axes = segment.axes;
    std::sort(axes.begin(), axes.end(), [](const CopyAxis& a, const CopyAxis& b) {
      return a.size == 1 || b.size == 1 ? a.size < b.size : a.row_stride < b.row_stride;
    });
    uint64_t run = segment.element_bytes;
    size_t inner = 0;
    for (; inner < axes.size() && (axes[inner].size == 1 || axes[inner].row_stride == run); ++inner) {
      run *= axes[inner].size;
    }
    AddRunsOf(absl::MakeConstSpan(axes).subspan(inner), segment.arena_offset, run, places);
  }
  static void AddRunsOf(absl::Span<const CopyAxis> axes, uint64_t at, uint64_t run, std::vector<Range>* places) {
    if (axes.empty()) {
      places->push_back({at, at + run});
      return;
    }
    const CopyAxis& outer = axes.back();
    for (uint64_t i = 0; i < outer.size; ++i) {
      AddRunsOf(axes.first(axes.size() - 1), at + i * outer.row_stride, run, places);
    }
  }

  // Gaps that are as long and as far apart as one another go into the same tiles.
  void AddGap(Range gap, uint64_t row_stride) {
    const uint64_t bytes = gap.end - gap.begin;
    if (gap_count_ > 0 && bytes == gap_bytes_ && row_stride == gap_row_stride_ && bytes < kLongRunBytes) {
      if (gap_count_ == 1) gap_stride_ = gap.begin - gap_begin_;
      if (gap.begin == gap_begin_ + gap_count_ * gap_stride_) {
        ++gap_count_;
        return;
      }
    }
    FlushGaps();
    gap_begin_ = gap.begin, gap_bytes_ = bytes, gap_row_stride_ = row_stride, gap_count_ = 1;
  }
  void FlushGaps() {
    CopyTile tile;
    tile.arena_offset = gap_begin_;
    tile.row_stride = gap_row_stride_;
    if (gap_count_ == 1) cutter_.AddLinear(tile, gap_bytes_);
    if (gap_count_ > 1) {
      const size_t axis = result_.axes.size();
      result_.axes.push_back(TileAxisOf(static_cast<uint32_t>(gap_count_), gap_stride_));
      cutter_.AddRuns(tile, gap_bytes_, gap_count_, axis, TileAlignmentOf(gap_bytes_ | gap_stride_));
    }
    gap_count_ = 0;
  }

  const CopyPlan& plan_;
  CopyTiles result_;
  TileCutter cutter_;
  // The gaps that are not in tiles yet.
  uint64_t gap_begin_ = 0, gap_bytes_ = 0, gap_stride_ = 0, gap_row_stride_ = 0, gap_count_ = 0;
};

}  // namespace

TileAxis TileAxisOf(uint32_t size, uint64_t row_stride) {
  const int log = std::bit_width(size - 1);  // rounded up
  const uint64_t magic = ((((uint64_t{1} << log) - size) << 32) / size) + 1;
  return {row_stride, size, static_cast<uint32_t>(magic), static_cast<uint16_t>(std::min(log, 1)),
          static_cast<uint16_t>(std::max(log - 1, 0))};
}

uint32_t TileAlignmentOf(uint64_t offsets) {
  return static_cast<uint32_t>(std::min(kWordBytes, uint64_t{1} << std::countr_zero(offsets | kWordBytes)));
}

absl::StatusOr<CopyTiles> TilesOf(const CopyPlan& plan) { return Cutter(plan).Cut(); }

absl::StatusOr<LeafTiles> LeafTilesOf(const CopyPlan& plan) {
  assert(plan.is_whole());
  LeafTiles result;
  // What is transposed goes into the leaf's own memory.
  TileCutter cutter({kLeafTileBytes, std::numeric_limits<uint32_t>::max()}, &result.tiles, &result.axes);
  for (const CopyPlan::Part& part : plan.parts()) {
    for (uint64_t begin = 0, end; begin < part.bytes; begin = end) {
      const uint64_t leaf = (part.state_offset + begin) / kLeafBytes;
      end = std::min(part.bytes, (leaf + 1) * kLeafBytes - part.state_offset);
      if (result.first.size() == leaf) result.first.push_back(static_cast<uint32_t>(result.tiles.size()));
      if (absl::Status status = cutter.CutRange(BeginOf(part), part.axes, begin, end); !status.ok()) return status;
    }
  }
  if (result.tiles.size() > std::numeric_limits<uint32_t>::max()) {
    return absl::UnimplementedError("a plan of 2^32 tiles or more");
  }
  result.first.push_back(static_cast<uint32_t>(result.tiles.size()));
  return result;
}

}  // namespace statepool
