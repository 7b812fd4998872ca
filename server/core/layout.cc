// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/layout.h"

#include <openssl/sha.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>

#include "absl/algorithm/container.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/name.h"

namespace statepool {
namespace {

constexpr absl::string_view kEncoding = "statepool.layout.v1";

absl::Status Invalid(absl::string_view field, absl::string_view why) {
  return Error(absl::StatusCode::kInvalidArgument, "INVALID_LAYOUT", absl::StrCat("invalid layout: ", field, ": ", why))
      .Field(field);
}

// ---- canonical encoding

void PutInteger(std::string* out, uint64_t value) {
  for (int i = 0; i < 8; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}
void PutString(std::string* out, absl::string_view s) {
  PutInteger(out, s.size());
  out->append(s.data(), s.size());
}

bool IsGrouped(const Sharding::Section& section) { return section.groups != section.size || section.shared; }

std::string Encode(const LayoutSpec& spec) {
  std::string out;
  PutString(&out, kEncoding);
  PutString(&out, spec.model_id);
  PutInteger(&out, spec.tensors.size());
  for (const TensorSpec& t : spec.tensors) {
    PutString(&out, t.name);
    PutInteger(&out, static_cast<uint64_t>(t.kind));
    PutInteger(&out, t.layers.size());
    for (uint32_t layer : t.layers) PutInteger(&out, layer);
    PutInteger(&out, static_cast<uint64_t>(t.dtype));
    PutInteger(&out, t.axes.size());
    for (const Axis& axis : t.axes) {
      PutString(&out, axis.name);
      PutInteger(&out, axis.size);
    }
    if (const auto* constant = std::get_if<ConstantInitial>(&t.initial)) {
      PutInteger(&out, 1);
      PutInteger(&out, std::bit_cast<uint64_t>(constant->value));
    } else if (const auto* data = std::get_if<DataInitial>(&t.initial)) {
      PutInteger(&out, 2);
      PutString(&out, data->bytes);
    } else {
      PutInteger(&out, 0);
    }
    if (!t.sharding.has_value()) {
      PutInteger(&out, 0);
      continue;
    }
    const bool grouped = absl::c_any_of(t.sharding->sections, IsGrouped);
    PutInteger(&out, grouped ? 2 : 1);
    PutInteger(&out, t.sharding->axis);
    PutInteger(&out, t.sharding->sections.size());
    for (const Sharding::Section& section : t.sharding->sections) {
      PutInteger(&out, section.size);
      if (!grouped) continue;
      PutInteger(&out, section.groups);
      PutInteger(&out, section.shared);
    }
  }
  return out;
}

// Reads what Encode wrote; `ok` turns false at the first thing that Encode could not have written.
struct Decoder {
  absl::string_view in;
  bool ok = true;

  uint64_t Integer() {
    if (in.size() < 8) return Fail();
    uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value |= static_cast<uint64_t>(static_cast<unsigned char>(in[i])) << (8 * i);
    in.remove_prefix(8);
    return value;
  }
  // An integer that is at most `limit`.
  uint64_t Bounded(uint64_t limit) {
    const uint64_t value = Integer();
    return value <= limit ? value : Fail();
  }
  std::string String() {
    const uint64_t size = Integer();
    if (size > in.size()) return Fail(), std::string();
    std::string s(in.substr(0, size));
    in.remove_prefix(size);
    return s;
  }
  uint64_t Fail() {
    ok = false;
    in = {};
    return 0;
  }
};

LayoutSpec Decode(absl::string_view encoding, bool* ok) {
  Decoder d{encoding};
  LayoutSpec spec;
  if (d.String() != kEncoding) d.Fail();
  spec.model_id = d.String();
  const uint64_t tensors = d.Bounded(kMaxTensors);
  for (uint64_t i = 0; d.ok && i < tensors; ++i) {
    TensorSpec t;
    t.name = d.String();
    t.kind = static_cast<TensorKind>(d.Bounded(255));
    const uint64_t layers = d.Bounded(kMaxLayersPerTensor);
    for (uint64_t j = 0; d.ok && j < layers; ++j) t.layers.push_back(static_cast<uint32_t>(d.Bounded(UINT32_MAX)));
    t.dtype = static_cast<DType>(d.Bounded(255));
    const uint64_t axes = d.Bounded(kMaxAxes);
    for (uint64_t j = 0; d.ok && j < axes; ++j) {
      Axis axis;
      axis.name = d.String();
      axis.size = d.Integer();
      t.axes.push_back(std::move(axis));
    }
    switch (d.Bounded(2)) {
      case 1: t.initial = ConstantInitial{std::bit_cast<double>(d.Integer())}; break;
      case 2: t.initial = DataInitial{d.String()}; break;
      default: break;
    }
    if (const uint64_t form = d.Bounded(2); form > 0) {
      Sharding sharding;
      sharding.axis = static_cast<uint32_t>(d.Bounded(kMaxAxes));
      const uint64_t sections = d.Bounded(kMaxTensors);
      for (uint64_t j = 0; d.ok && j < sections; ++j) {
        Sharding::Section section{d.Integer()};
        if (form == 2) {
          section.groups = d.Integer();
          section.shared = d.Bounded(1) == 1;
        }
        sharding.sections.push_back(section);
      }
      t.sharding = std::move(sharding);
    }
    spec.tensors.push_back(std::move(t));
  }
  *ok = d.ok && d.in.empty();
  return spec;
}

// ---- validation

bool ValidText(absl::string_view text, size_t max_bytes) {
  if (text.empty() || text.size() > max_bytes) return false;
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return c >= 0x20 && c != 0x7f; });
}

// The bytes of one element with this value, or nothing when the dtype can't hold it. Rounds to nearest, ties to even.
std::optional<std::string> EncodeElement(DType dtype, double value) {
  const auto raw = [](auto v) { return std::string(reinterpret_cast<const char*>(&v), sizeof v); };
  const auto integer = [&](auto zero) -> std::optional<std::string> {
    using T = decltype(zero);
    if (value != std::trunc(value) || value < static_cast<double>(std::numeric_limits<T>::min()) ||
        value >= std::ldexp(1.0, std::numeric_limits<T>::digits)) {
      return std::nullopt;
    }
    return raw(static_cast<T>(value));
  };
  if (!std::isfinite(value)) return std::nullopt;
  // A small float with `mantissa` stored bits, as its bits.
  const auto small_float = [&](int mantissa, int min_exponent, double max, int sign_bit) -> std::optional<uint32_t> {
    const double magnitude = std::fabs(value);
    if (magnitude == 0) return 0u;
    const int exponent = std::max(std::ilogb(magnitude), min_exponent);
    const double scaled = std::nearbyint(std::ldexp(magnitude, mantissa - exponent));
    if (std::ldexp(scaled, exponent - mantissa) > max) return std::nullopt;
    // `scaled` carries the hidden bit when the number is normal; a carry into the next exponent adds up by itself.
    const uint32_t bits = static_cast<uint32_t>(scaled) + (static_cast<uint32_t>(exponent - min_exponent) << mantissa);
    return bits | (std::signbit(value) ? 1u << sign_bit : 0u);
  };
  switch (dtype) {
    case DType::kFloat64: return raw(value);
    case DType::kFloat32:
      if (std::fabs(value) > std::numeric_limits<float>::max()) return std::nullopt;
      return raw(static_cast<float>(value));
    case DType::kFloat16:
      if (auto bits = small_float(10, -14, 65504.0, 15)) return raw(static_cast<uint16_t>(*bits));
      return std::nullopt;
    case DType::kBFloat16:
      if (auto bits = small_float(7, -126, 3.3895313892515355e38, 15)) return raw(static_cast<uint16_t>(*bits));
      return std::nullopt;
    case DType::kFloat8E4M3:
      if (auto bits = small_float(3, -6, 448.0, 7)) return raw(static_cast<uint8_t>(*bits));
      return std::nullopt;
    case DType::kFloat8E5M2:
      if (auto bits = small_float(2, -14, 57344.0, 7)) return raw(static_cast<uint8_t>(*bits));
      return std::nullopt;
    case DType::kInt8: return integer(int8_t{});
    case DType::kUInt8: return integer(uint8_t{});
    case DType::kInt16: return integer(int16_t{});
    case DType::kInt32: return integer(int32_t{});
    case DType::kInt64: return integer(int64_t{});
  }
  return std::nullopt;
}

absl::Status ValidateTensor(const TensorSpec& t, const std::string& field, uint64_t* state_bytes) {
  if (!ValidText(t.name, kMaxTensorNameBytes)) {
    return Invalid(field + ".name",
                   absl::StrCat("must be 1..", kMaxTensorNameBytes, " bytes without control characters"));
  }
  if (t.kind < TensorKind::kConv || t.kind > TensorKind::kOther) return Invalid(field + ".kind", "unknown or missing");
  if (DTypeBytes(t.dtype) == 0) return Invalid(field + ".dtype", "unknown or missing");
  if (t.layers.empty() || t.layers.size() > kMaxLayersPerTensor) {
    return Invalid(field + ".layers", absl::StrCat("needs 1..", kMaxLayersPerTensor, " layers"));
  }
  for (size_t i = 1; i < t.layers.size(); ++i) {
    if (t.layers[i] <= t.layers[i - 1]) return Invalid(field + ".layers", "must be strictly ascending");
  }
  if (t.axes.empty() || t.axes.size() > kMaxAxes)
    return Invalid(field + ".axes", absl::StrCat("needs 1..", kMaxAxes, " axes"));
  std::set<absl::string_view> axis_names;
  uint64_t bytes = DTypeBytes(t.dtype) * t.layers.size();
  for (size_t i = 0; i < t.axes.size(); ++i) {
    const Axis& axis = t.axes[i];
    const std::string axis_field = absl::StrCat(field, ".axes[", i, "]");
    if (!ValidText(axis.name, kMaxTensorNameBytes))
      return Invalid(axis_field + ".name", "empty, too long or with control characters");
    if (!axis_names.insert(axis.name).second) return Invalid(axis_field + ".name", "twice in one tensor");
    if (axis.size == 0) return Invalid(axis_field + ".size", "must be at least 1");
    if (axis.size > kMaxStateBytes || bytes > kMaxStateBytes / axis.size) {
      return Invalid(axis_field + ".size", absl::StrCat("the state would be larger than ", kMaxStateBytes, " bytes"));
    }
    bytes *= axis.size;
  }
  if (const auto* constant = std::get_if<ConstantInitial>(&t.initial)) {
    if (!EncodeElement(t.dtype, constant->value).has_value()) {
      return Invalid(field + ".initial.constant", "the dtype can't represent it");
    }
  } else if (const auto* data = std::get_if<DataInitial>(&t.initial)) {
    if (data->bytes.size() != bytes) {
      return Invalid(field + ".initial.data", absl::StrCat("has ", data->bytes.size(), " bytes, the tensor ", bytes));
    }
  }
  if (t.sharding.has_value()) {
    if (t.sharding->axis >= t.axes.size()) return Invalid(field + ".sharding.axis", "there is no such axis");
    const std::vector<Sharding::Section>& sections = t.sharding->sections;
    if (sections.size() > kMaxTensors) return Invalid(field + ".sharding.sections", "too many");
    uint64_t sum = 0;
    for (const Sharding::Section& section : sections) {
      if (section.size == 0 || section.size > kMaxStateBytes)
        return Invalid(field + ".sharding.sections", "each must be at least 1");
      if (section.groups > 0 && section.size % section.groups != 0) {
        return Invalid(field + ".sharding.section_groups",
                       absl::StrCat("a section of ", section.size, " has no ", section.groups, " equal groups"));
      }
      sum += section.size;
    }
    if (!sections.empty() && sum != t.axes[t.sharding->axis].size) {
      return Invalid(field + ".sharding.sections",
                     absl::StrCat("add up to ", sum, ", the axis has ", t.axes[t.sharding->axis].size));
    }
  }
  *state_bytes += bytes;
  if (*state_bytes > kMaxStateBytes)
    return Invalid(field, absl::StrCat("the state is larger than ", kMaxStateBytes, " bytes"));
  return absl::OkStatus();
}

}  // namespace

size_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64: return 8;
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kInt16: return 2;
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2:
    case DType::kInt8:
    case DType::kUInt8: return 1;
  }
  return 0;
}

uint64_t TensorSpec::LayerBytes() const {
  uint64_t bytes = DTypeBytes(dtype);
  for (const Axis& axis : axes) bytes *= axis.size;
  return bytes;
}

absl::StatusOr<LayoutRef> Layout::Create(LayoutSpec spec) {
  if (!ValidText(spec.model_id, kMaxModelIdBytes)) {
    return Invalid("model_id", absl::StrCat("must be 1..", kMaxModelIdBytes, " bytes without control characters"));
  }
  if (spec.tensors.empty() || spec.tensors.size() > kMaxTensors) {
    return Invalid("tensors", absl::StrCat("needs 1..", kMaxTensors, " tensors"));
  }
  auto layout = std::shared_ptr<Layout>(new Layout());
  std::set<absl::string_view> names;
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    TensorSpec& t = spec.tensors[i];
    const std::string field = absl::StrCat("tensors[", i, "]");
    if (const auto* constant = std::get_if<ConstantInitial>(&t.initial); constant != nullptr && constant->value == 0) {
      t.initial = ZeroInitial{};
    }
    if (absl::Status s = ValidateTensor(t, field, &layout->state_bytes_); !s.ok()) return s;
    if (t.sharding.has_value()) {
      std::vector<Sharding::Section>& sections = t.sharding->sections;
      if (sections.empty()) sections.push_back({t.axes[t.sharding->axis].size});
      for (Sharding::Section& section : sections) {
        if (section.groups == 0) section.groups = section.size;
      }
    }
    if (!names.insert(t.name).second) return Invalid(field + ".name", "twice in one layout");
  }
  layout->canonical_ = Encode(spec);
  if (layout->canonical_.size() > kMaxCanonicalBytes) {
    return Invalid("tensors", absl::StrCat("the layout has ", layout->canonical_.size(),
                                           " bytes, initial data included; the limit is ", kMaxCanonicalBytes));
  }
  layout->spec_ = std::move(spec);
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(layout->canonical_.data()), layout->canonical_.size(), digest);
  layout->fingerprint_ = absl::BytesToHexString({reinterpret_cast<const char*>(digest), sizeof digest});
  return LayoutRef(std::move(layout));
}

absl::StatusOr<LayoutRef> Layout::FromCanonical(absl::string_view encoding) {
  bool ok;
  LayoutSpec spec = Decode(encoding, &ok);
  if (!ok) return Invalid("canonical", "cut short, or not a canonical encoding");
  absl::StatusOr<LayoutRef> layout = Create(std::move(spec));
  if (layout.ok() && (*layout)->canonical() != encoding) return Invalid("canonical", "not the canonical form");
  return layout;
}

void Layout::FillInitial(uint64_t offset, char* destination, size_t size) const {
  uint64_t tensor_begin = 0;
  for (const TensorSpec& t : spec_.tensors) {
    const uint64_t tensor_end = tensor_begin + t.Bytes();
    if (size > 0 && offset < tensor_end) {
      const size_t n = std::min<uint64_t>(size, tensor_end - offset);
      const uint64_t in_tensor = offset - tensor_begin;
      if (const auto* constant = std::get_if<ConstantInitial>(&t.initial)) {
        const std::string element = *EncodeElement(t.dtype, constant->value);
        for (size_t i = 0; i < n; ++i) destination[i] = element[(in_tensor + i) % element.size()];
      } else if (const auto* data = std::get_if<DataInitial>(&t.initial)) {
        std::memcpy(destination, data->bytes.data() + in_tensor, n);
      } else {
        std::memset(destination, 0, n);
      }
      destination += n;
      offset += n;
      size -= n;
    }
    tensor_begin = tensor_end;
  }
}

}  // namespace statepool
