// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Layouts: the canonical encoding and back, the initial state in pieces, and the ranges of a Select against a map of
// the image that is made here, byte by byte.
//
// Input: a byte for the mode, then an encoding as it is, or decisions for a spec and selects.
#include <bit>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"
#include "server/core/layout.h"
#include "server/core/select.h"
#include "tests/fuzz/input.h"

namespace statepool::fuzz {
namespace {

constexpr uint64_t kWalkedBytesMax = 64 << 10;  // of states that are looked at byte by byte

std::string NameOf(Input* input) {
  switch (input->Pick(12)) {
    case 0: return std::string(input->Bytes(input->Pick(200)));
    case 1: return std::string(128 + input->Pick(2), 'n');
    default: return std::string(1, static_cast<char>('a' + input->Pick(8)));
  }
}

uint64_t SizeOf(Input* input) {
  switch (input->Pick(16)) {
    case 0: return input->Integer(8);
    case 1: return uint64_t{1} << input->Pick(64);
    case 2: return 0;
    case 3:
    case 4:
    case 5: return 1;
    default: return 1 + input->Pick(12);
  }
}

double ConstantOf(Input* input) {
  static const std::vector<double> kValues = {
      0,     -0.0, 1,     -1,     0.1, 7,    448, 464, 65504, 65520,
      57344, 3e38, 1e308, 5e-324, 127, -128, 128, 255, -129,  9223372036854775807.0,
      1e-40};
  if (input->Rarely(4)) return std::bit_cast<double>(input->Integer(8));
  return input->Of(kValues);
}

TensorSpec TensorOf(Input* input) {
  TensorSpec tensor;
  tensor.name = NameOf(input);
  tensor.kind = static_cast<TensorKind>(input->Rarely(32) ? input->Byte() : 1 + input->Pick(4));
  tensor.dtype = static_cast<DType>(input->Rarely(32) ? input->Byte() : 1 + input->Pick(11));
  const size_t layers = input->Rarely(64) ? 4090 + input->Pick(10) : input->Pick(5);
  uint32_t layer = 0;
  for (size_t i = 0; i < layers; ++i) {
    tensor.layers.push_back(layer);
    layer += input->Rarely(32) ? 0 : 1 + static_cast<uint32_t>(input->Pick(2));
  }
  const size_t axes = input->Rarely(32) ? 9 : 1 + input->Pick(3);
  for (size_t i = 0; i < axes; ++i) tensor.axes.push_back({absl::StrCat(NameOf(input), i % 9), SizeOf(input)});
  switch (input->Pick(3)) {
    case 1: tensor.initial = ConstantInitial{ConstantOf(input)}; break;
    case 2: {
      uint64_t bytes = DTypeBytes(tensor.dtype) * tensor.layers.size();
      for (const Axis& axis : tensor.axes) bytes = axis.size < 4096 && bytes < 4096 ? bytes * axis.size : 0;
      if (input->Rarely(16)) ++bytes;
      DataInitial data;
      for (uint64_t i = 0; i < std::min<uint64_t>(bytes, 65536); ++i) data.bytes.push_back(static_cast<char>(i * 37));
      tensor.initial = std::move(data);
      break;
    }
    default: break;
  }
  if (input->Rarely(3)) {
    tensor.sharding.emplace();
    tensor.sharding->axis = static_cast<uint32_t>(input->Pick(tensor.axes.size() + 1));
    const size_t sections = input->Rarely(64) ? 257 : input->Pick(4);
    uint64_t left = tensor.sharding->axis < tensor.axes.size() ? tensor.axes[tensor.sharding->axis].size : 1;
    for (size_t i = 0; i + 1 < sections; ++i) {
      tensor.sharding->sections.push_back({input->Pick(4), input->Pick(4), input->Pick(2) == 0});
      left -= tensor.sharding->sections.back().size;
    }
    if (sections > 0) tensor.sharding->sections.push_back({left});
  }
  return tensor;
}

// The tensor and layer that each byte of the image belongs to.
std::vector<std::pair<size_t, uint32_t>> MapOf(const Layout& layout) {
  std::vector<std::pair<size_t, uint32_t>> owners;
  const std::vector<TensorSpec>& tensors = layout.spec().tensors;
  for (size_t t = 0; t < tensors.size(); ++t) {
    uint64_t bytes = DTypeBytes(tensors[t].dtype);
    for (const Axis& axis : tensors[t].axes) bytes *= axis.size;
    for (uint32_t layer : tensors[t].layers) owners.insert(owners.end(), bytes, {t, layer});
  }
  return owners;
}

void CheckSelect(const LayoutRef& layout, const std::vector<std::pair<size_t, uint32_t>>& owners, Input* input) {
  Select select;
  const size_t tensors = input->Pick(4), layers = input->Pick(4);
  for (size_t i = 0; i < tensors; ++i) {
    const std::vector<TensorSpec>& had = layout->spec().tensors;
    select.tensors.push_back(input->Rarely(16) ? "none" : had[input->Pick(std::min<size_t>(had.size(), 256))].name);
  }
  if (input->Rarely(4)) {
    uint32_t layer = 0;
    for (size_t i = 0; i < layers; ++i) {
      layer += static_cast<uint32_t>(input->Pick(4));
      select.layers.push_back(layer);
    }
  } else {  // some that there are
    std::set<uint32_t> there;
    for (const TensorSpec& tensor : layout->spec().tensors) there.insert(tensor.layers.begin(), tensor.layers.end());
    for (uint32_t layer : there) {
      if (input->Flip()) select.layers.push_back(layer);
    }
  }

  // What the contract says of it, in other words.
  const std::set<std::string> names(select.tensors.begin(), select.tensors.end());
  const std::set<uint32_t> numbers(select.layers.begin(), select.layers.end());
  bool valid = names.size() == select.tensors.size() && numbers.size() == select.layers.size();
  std::set<std::string> known;
  std::set<uint32_t> had;
  const auto selected = [&](const TensorSpec& tensor) { return names.empty() || names.count(tensor.name) > 0; };
  for (const TensorSpec& tensor : layout->spec().tensors) {
    known.insert(tensor.name);
    if (selected(tensor)) had.insert(tensor.layers.begin(), tensor.layers.end());
  }
  for (const std::string& name : names) valid = valid && known.count(name) > 0;
  for (uint32_t number : numbers) valid = valid && had.count(number) > 0;

  const absl::StatusOr<std::vector<ByteRange>> ranges = RangesOf(*layout, select);
  Require(ranges.ok() == valid, "RangesOf: takes or refuses against the contract", ranges.status().message());
  if (!ranges.ok()) {
    Require(ReasonOf(ranges.status()) == "INVALID_OPTION", "RangesOf: another reason", ranges.status().message());
    return;
  }
  std::vector<bool> in_range(owners.size(), false);
  uint64_t end = 0, sum = 0;
  for (size_t i = 0; i < ranges->size(); ++i) {
    const ByteRange& range = (*ranges)[i];
    Require(range.bytes > 0, "RangesOf: an empty range");
    Require(range.offset <= owners.size() && range.bytes <= owners.size() - range.offset, "RangesOf: beyond the image");
    Require(i == 0 || range.offset > end, "RangesOf: not ascending, or touching");
    end = range.offset + range.bytes;
    sum += range.bytes;
    for (uint64_t at = range.offset; at < end; ++at) in_range[at] = true;
  }
  Require(BytesOf(*ranges) == sum, "BytesOf: not the sum of the ranges");
  for (size_t at = 0; at < owners.size(); ++at) {
    const bool wanted =
        selected(layout->spec().tensors[owners[at].first]) && (numbers.empty() || numbers.count(owners[at].second) > 0);
    Require(in_range[at] == wanted, "RangesOf: a byte too many or too few", absl::StrCat("byte ", at));
  }
  const std::string image(owners.size(), 'x');
  uint64_t cut = 0;
  for (absl::string_view piece : Cut(image, *ranges)) cut += piece.size();
  Require(cut == sum, "Cut: other bytes than the ranges have");
}

void CheckLayout(const LayoutRef& layout, Input* input) {
  Require(layout->fingerprint().size() == 64, "a fingerprint is 64 hex digits");
  const absl::StatusOr<LayoutRef> again = Layout::FromCanonical(layout->canonical());
  Require(again.ok(), "a canonical encoding is refused", again.status().message());
  Require((*again)->canonical() == layout->canonical(), "the canonical encoding is not itself again");
  Require((*again)->fingerprint() == layout->fingerprint(), "the fingerprint changes");
  Require((*again)->state_bytes() == layout->state_bytes(), "the size changes");
  if (layout->state_bytes() > kWalkedBytesMax) return;

  const std::vector<std::pair<size_t, uint32_t>> owners = MapOf(*layout);
  Require(owners.size() == layout->state_bytes(), "state_bytes is not the sum of the tensors");
  const std::string whole = [&] {
    std::string bytes(layout->state_bytes(), '\xaa');
    (*again)->FillInitial(0, bytes.data(), bytes.size());
    return bytes;
  }();
  std::string pieces(layout->state_bytes(), '\x55');
  for (size_t at = 0; at < pieces.size();) {
    const size_t n = input->empty() ? pieces.size() - at : std::min<size_t>(input->Byte(), pieces.size() - at);
    layout->FillInitial(at, pieces.data() + at, n);
    at += n;
  }
  Require(pieces == whole, "FillInitial: pieces differ from the whole");
  uint64_t offset = 0;
  for (const TensorSpec& tensor : layout->spec().tensors) {
    const absl::string_view bytes = absl::string_view(whole).substr(offset, tensor.Bytes());
    if (std::holds_alternative<ZeroInitial>(tensor.initial))
      Require(bytes.find_first_not_of('\0') == absl::string_view::npos, "FillInitial: not zero");
    if (const auto* data = std::get_if<DataInitial>(&tensor.initial))
      Require(bytes == data->bytes, "FillInitial: other data");
    offset += tensor.Bytes();
  }
  for (int i = 0; i < 4; ++i) CheckSelect(layout, owners, input);
}

void Run(Input* input) {
  if (input->Flip()) {
    const std::string encoding(input->Rest());
    const absl::StatusOr<LayoutRef> layout = Layout::FromCanonical(encoding);
    if (layout.ok()) {
      Require((*layout)->canonical() == encoding, "FromCanonical takes what canonical() does not give");
      Input decisions(reinterpret_cast<const uint8_t*>(encoding.data()), encoding.size());
      CheckLayout(*layout, &decisions);
    } else {
      Require(ReasonOf(layout.status()) == "INVALID_LAYOUT", "another reason", layout.status().message());
    }
    return;
  }
  LayoutSpec spec;
  spec.model_id = NameOf(input);
  const size_t tensors = input->Rarely(64) ? 255 + input->Pick(3) : 1 + input->Pick(4);
  for (size_t i = 0; i < tensors; ++i) {
    spec.tensors.push_back(TensorOf(input));
    if (tensors > 200) spec.tensors.back().name = absl::StrCat("t", i);
  }
  const absl::StatusOr<LayoutRef> layout = Layout::Create(std::move(spec));
  if (layout.ok()) CheckLayout(*layout, input);
  else Require(ReasonOf(layout.status()) == "INVALID_LAYOUT", "another reason", layout.status().message());
}

}  // namespace
}  // namespace statepool::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  statepool::fuzz::Input input(data, size);
  statepool::fuzz::Run(&input);
  return 0;
}
