// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Layouts: the canonical schema of one model's state, and its fingerprint.
//
// A Layout is immutable once built, shared by reference, and its identity is its fingerprint: SHA-256 over the
// canonical encoding that proto/statepool/v1/statepool.proto defines at `message Layout`. A state's bytes are: tensors
// in order, layers ascending, row-major, little-endian, no padding.
#ifndef STATEPOOL_SERVER_CORE_LAYOUT_H_
#define STATEPOOL_SERVER_CORE_LAYOUT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace statepool {

// Numbers as in the .proto.
enum class TensorKind : uint8_t { kConv = 1, kRecurrent = 2, kShift = 3, kOther = 4 };
enum class DType : uint8_t {
  kFloat32 = 1,
  kFloat16,
  kBFloat16,
  kFloat64,
  kFloat8E4M3,
  kFloat8E5M2,
  kInt8,
  kUInt8,
  kInt16,
  kInt32,
  kInt64
};
size_t DTypeBytes(DType dtype);

struct Axis {
  std::string name;
  uint64_t size = 0;
};

// How tensor parallelism divides an axis: each section among the ranks by itself, between groups only. No sections:
// one, the whole axis.
struct Sharding {
  struct Section {
    uint64_t size = 0;
    uint64_t groups = 0;  // equal parts, divisors of `size`; as many as `size`, or 0, and it may be divided anywhere
    bool shared = false;  // may have fewer groups than there are ranks: neighbours have one together
  };
  uint32_t axis = 0;
  std::vector<Section> sections;
};

struct ZeroInitial {};
struct ConstantInitial {
  double value = 0;
};
struct DataInitial {
  std::string bytes;  // all layers of the tensor
};
using InitialValue = std::variant<ZeroInitial, ConstantInitial, DataInitial>;

struct TensorSpec {
  std::string name;
  TensorKind kind = TensorKind::kOther;
  std::vector<uint32_t> layers;  // ascending
  DType dtype = DType::kFloat32;
  std::vector<Axis> axes;  // of one layer, outermost first
  InitialValue initial;
  std::optional<Sharding> sharding;  // absent: replicated

  uint64_t LayerBytes() const;  // REQUIRES: validated
  uint64_t Bytes() const { return LayerBytes() * layers.size(); }
};

struct LayoutSpec {
  std::string model_id;
  std::vector<TensorSpec> tensors;
};

inline constexpr size_t kMaxTensors = 256;
inline constexpr size_t kMaxLayersPerTensor = 4096;
inline constexpr size_t kMaxAxes = 8;
inline constexpr size_t kMaxModelIdBytes = 512;
inline constexpr size_t kMaxTensorNameBytes = 128;
inline constexpr uint64_t kMaxStateBytes = uint64_t{1} << 40;
inline constexpr size_t kMaxCanonicalBytes = 64 << 20;  // of one layout, its initial data included

class Layout;
using LayoutRef = std::shared_ptr<const Layout>;

// Thread-safe: immutable.
class Layout {
 public:
  // Checks every field (sizes >= 1 and without overflow, unique names, layers ascending, initial values that fit) and
  // computes the fingerprint. Errors: INVALID_ARGUMENT / INVALID_LAYOUT with the field.
  static absl::StatusOr<LayoutRef> Create(LayoutSpec spec);

  // The inverse of canonical(). Errors: INVALID_LAYOUT for anything that canonical() could not have given.
  static absl::StatusOr<LayoutRef> FromCanonical(absl::string_view encoding);

  const LayoutSpec& spec() const { return spec_; }
  const std::string& fingerprint() const { return fingerprint_; }  // 64 lower-case hex digits
  const std::string& canonical() const { return canonical_; }      // the encoding under the fingerprint
  uint64_t state_bytes() const { return state_bytes_; }

  // Writes [offset, offset + size) of the initial state. REQUIRES: the range lies inside the state.
  void FillInitial(uint64_t offset, char* destination, size_t size) const;

 private:
  Layout() = default;
  LayoutSpec spec_;
  std::string fingerprint_;
  std::string canonical_;
  uint64_t state_bytes_ = 0;
};

}  // namespace statepool

#endif  // STATEPOOL_SERVER_CORE_LAYOUT_H_
