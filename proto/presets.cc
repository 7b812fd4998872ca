// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "proto/presets.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace statepool {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr uint64_t kSizeMax = uint64_t{1} << 32;     // of a parameter
constexpr uint64_t kProductMax = uint64_t{1} << 40;  // no state has more bytes
constexpr uint32_t kLayersMax = 4096;
constexpr int kPartsMax = 16;

using Axes = std::vector<std::pair<std::string, uint64_t>>;

// How tensor parallelism divides an axis. Sections of `groups` equal parts each; no sections: the axis is one, divided
// anywhere.
struct Split {
  struct Section {
    uint64_t size, groups;
    bool shared = false;
  };
  uint32_t axis;
  std::vector<Section> sections = {};
};

// Reads a family's parameters and writes its tensors, until something is wrong.
class Builder {
 public:
  Builder(const v1::LayoutPreset& preset, const PresetFamily& family, const Message& parameters, std::string prefix,
          v1::Layout* layout)
      : preset_(preset), family_(family), parameters_(parameters), prefix_(std::move(prefix)), layout_(layout) {
    const auto& ids = preset.layer_ids();
    layers_ = parameters.GetReflection()->GetUInt32(parameters, Field("layers"));
    if (layers_ == 0) layers_ = static_cast<uint32_t>(ids.size());
    if (layers_ < 1 || layers_ > kLayersMax) {
      Fault("layers", absl::StrCat("must be 1..", kLayersMax));
    } else if (!ids.empty() && layers_ != static_cast<uint32_t>(ids.size())) {
      Fault("layers", absl::StrCat("must be ", ids.size(), ", the number of layer_ids"));
    } else if (!std::is_sorted(ids.begin(), ids.end(), std::less_equal<>())) {
      fault_ = {"layer_ids", "must be ascending"};
    }
  }

  // A parameter of the family, or what an absent one is. 1 after a fault, so that whoever goes on divides by nothing.
  uint64_t Size(const std::string& name, uint64_t least = 1) {
    uint64_t value = parameters_.GetReflection()->GetUInt64(parameters_, Field(name));
    if (value == 0 && !absl::SimpleAtoi(Fallback(name), &value)) value = 0;
    if (value < least || value > kSizeMax) Fault(name, absl::StrCat("must be ", least, "..2^32"));
    return fault_.has_value() ? 1 : value;
  }
  // One that is as another by default.
  uint64_t Size(const std::string& name, const std::string& otherwise) {
    const bool is_given = parameters_.GetReflection()->GetUInt64(parameters_, Field(name)) != 0;
    return Size(is_given ? name : otherwise);
  }
  // The taps that are kept of a kernel.
  uint64_t Taps() { return Size("conv_kernel", 2) - 1; }
  v1::DType Dtype(const std::string& name) {
    const int value = parameters_.GetReflection()->GetEnumValue(parameters_, Field(name));
    if (!v1::DType_IsValid(value)) Fault(name, absl::StrCat("has the unknown value ", value));
    if (value != 0) return static_cast<v1::DType>(value);
    v1::DType fallback = v1::DTYPE_UNSPECIFIED;
    v1::DType_Parse(Fallback(name), &fallback);
    return fallback;
  }
  bool Flag(const std::string& name) { return parameters_.GetReflection()->GetBool(parameters_, Field(name)); }

  uint64_t Product(const std::string& name, uint64_t a, uint64_t b) {
    if (a > kProductMax / b) Fault(name, "makes the state too large");
    return fault_.has_value() ? 1 : a * b;
  }
  void RequireMultiple(const std::string& name, uint64_t value, uint64_t of, const std::string& whose) {
    if (value % of != 0) Fault(name, absl::StrCat("must be a multiple of ", whose));
  }

  void Add(const std::string& name, v1::TensorKind kind, v1::DType dtype, const Axes& axes,
           const std::optional<Split>& split = std::nullopt, double initial = 0) {
    if (fault_.has_value()) return;
    v1::TensorSpec& tensor = *layout_->add_tensors();
    tensor.set_name(prefix_ + name);
    tensor.set_kind(kind);
    tensor.set_dtype(dtype);
    if (preset_.layer_ids().empty()) {
      for (uint32_t layer = 0; layer < layers_; ++layer) tensor.add_layers(layer);
    } else {
      *tensor.mutable_layers() = preset_.layer_ids();
    }
    for (const auto& [axis_name, size] : axes) {
      v1::Axis& axis = *tensor.add_axes();
      axis.set_name(axis_name);
      axis.set_size(size);
    }
    if (initial != 0) tensor.mutable_initial()->set_constant(initial);
    if (!split.has_value()) return;
    tensor.mutable_sharding()->set_axis(split->axis);
    for (const Split::Section& section : split->sections) {
      tensor.mutable_sharding()->add_sections(section.size);
      tensor.mutable_sharding()->add_section_groups(section.groups);
      tensor.mutable_sharding()->add_section_shared(section.shared);
    }
  }

  const std::optional<PresetFault>& fault() const { return fault_; }

 private:
  const FieldDescriptor* Field(const std::string& name) const {
    return parameters_.GetDescriptor()->FindFieldByName(name);
  }
  std::string Fallback(const std::string& name) const {
    const auto it = std::find_if(family_.parameters.begin(), family_.parameters.end(),
                                 [&](const PresetFamily::Parameter& p) { return p.name == name; });
    return it == family_.parameters.end() ? "" : it->fallback;
  }
  void Fault(const std::string& name, std::string what) {
    if (!fault_.has_value()) fault_ = {absl::StrCat(family_.name, ".", name), std::move(what)};
  }

  const v1::LayoutPreset& preset_;
  const PresetFamily& family_;
  const Message& parameters_;
  const std::string prefix_;
  v1::Layout* const layout_;
  uint32_t layers_ = 0;  // how many have it
  std::optional<PresetFault> fault_;
};

// ---- the families

void Mamba1(Builder* b) {
  const uint64_t channels = b->Size("intermediate_size"), states = b->Size("state_size"), taps = b->Taps();
  b->Add("conv", v1::CONV, b->Dtype("conv_dtype"), {{"tap", taps}, {"channel", channels}}, Split{1});
  b->Add("ssm", v1::RECURRENT, b->Dtype("recurrent_dtype"), {{"channel", channels}, {"state", states}}, Split{0});
}

void Mamba2(Builder* b) {
  const uint64_t heads = b->Size("heads"), head_dim = b->Size("head_dim"), states = b->Size("state_size");
  const uint64_t groups = b->Size("groups"), taps = b->Taps();
  const uint64_t x = b->Product("head_dim", heads, head_dim), bc = b->Product("groups", groups, states);
  b->RequireMultiple("heads", heads, groups, "groups");
  b->Add("conv", v1::CONV, b->Dtype("conv_dtype"), {{"tap", taps}, {"channel", x + 2 * bc}},
         Split{1, {{x, heads}, {bc, groups, true}, {bc, groups, true}}});
  b->Add("ssm", v1::RECURRENT, b->Dtype("recurrent_dtype"),
         {{"head", heads}, {"head_dim", head_dim}, {"state", states}}, Split{0});
}

void GatedDeltaNet(Builder* b) {
  const uint64_t key_heads = b->Size("key_heads"), key_dim = b->Size("key_dim");
  const uint64_t value_heads = b->Size("value_heads"), value_dim = b->Size("value_dim"), taps = b->Taps();
  b->RequireMultiple("value_heads", value_heads, key_heads, "key_heads");
  const uint64_t keys = b->Product("key_dim", key_heads, key_dim);
  const uint64_t values = b->Product("value_dim", value_heads, value_dim);
  b->Add("conv", v1::CONV, b->Dtype("conv_dtype"), {{"tap", taps}, {"channel", 2 * keys + values}},
         Split{1, {{keys, key_heads}, {keys, key_heads}, {values, value_heads}}});
  b->Add("delta", v1::RECURRENT, b->Dtype("recurrent_dtype"),
         {{"head", value_heads}, {"key", key_dim}, {"value", value_dim}}, Split{0});
}

void Kda(Builder* b) {
  const uint64_t heads = b->Size("heads"), head_dim = b->Size("head_dim"), taps = b->Taps();
  const uint64_t key_heads = b->Size("key_heads", "heads"), key_dim = b->Size("key_dim", "head_dim");
  const uint64_t queries = b->Product("head_dim", heads, head_dim);
  const uint64_t keys = b->Product("key_dim", key_heads, key_dim);
  const v1::DType dtype = b->Dtype("conv_dtype");
  if (b->Flag("separate_convs")) {
    const Split by_head{1, {{keys, key_heads}}};
    b->Add("conv_q", v1::CONV, dtype, {{"tap", taps}, {"channel", queries}}, Split{1, {{queries, heads}}});
    b->Add("conv_k", v1::CONV, dtype, {{"tap", taps}, {"channel", keys}}, by_head);
    b->Add("conv_v", v1::CONV, dtype, {{"tap", taps}, {"channel", keys}}, by_head);
  } else {
    b->Add("conv", v1::CONV, dtype, {{"tap", taps}, {"channel", queries + 2 * keys}},
           Split{1, {{queries, heads}, {keys, key_heads}, {keys, key_heads}}});
  }
  b->Add("delta", v1::RECURRENT, v1::FLOAT32, {{"head", heads}, {"key", head_dim}, {"value", head_dim}}, Split{0});
}

void LinearAttention(Builder* b) {
  const uint64_t heads = b->Size("heads"), head_dim = b->Size("head_dim");
  b->Add("kv", v1::RECURRENT, b->Dtype("recurrent_dtype"), {{"head", heads}, {"key", head_dim}, {"value", head_dim}},
         Split{0});
}

void ShortConv(Builder* b) {
  const uint64_t channels = b->Size("channels"), taps = b->Taps();
  b->Add("conv", v1::CONV, b->Dtype("conv_dtype"), {{"tap", taps}, {"channel", channels}}, Split{1});
}

void Rwkv4(Builder* b) {
  const Axes channels = {{"channel", b->Size("hidden_size")}};
  const Axes attention = {{"channel", b->Size("attention_size", "hidden_size")}};
  const v1::DType dtype = b->Dtype("shift_dtype");
  b->Add("att_shift", v1::SHIFT, dtype, channels);
  b->Add("aa", v1::RECURRENT, v1::FLOAT32, attention, Split{0});
  b->Add("bb", v1::RECURRENT, v1::FLOAT32, attention, Split{0});
  b->Add("pp", v1::RECURRENT, v1::FLOAT32, attention, Split{0}, -1e30);  // a maximum of exponents
  b->Add("ffn_shift", v1::SHIFT, dtype, channels);
}

void Rwkv4Seed(Builder* b) {
  const Axes channels = {{"channel", b->Size("hidden_size")}};
  const v1::DType dtype = b->Dtype("shift_dtype");
  b->Add("aa", v1::RECURRENT, v1::FLOAT32, channels, Split{0});
  b->Add("ab", v1::RECURRENT, v1::FLOAT32, channels, Split{0});
  b->Add("att_x_prev", v1::SHIFT, dtype, channels);
  b->Add("ffn_x_prev", v1::SHIFT, dtype, channels);
}

// The matrices of a head are [outer, inner].
void Rwkv(Builder* b, const char* outer, const char* inner) {
  const uint64_t hidden = b->Size("hidden_size"), head = b->Size("head_size");
  b->RequireMultiple("hidden_size", hidden, head, "head_size");
  const Axes channels = {{"channel", hidden}};
  const v1::DType dtype = b->Dtype("shift_dtype");
  b->Add("att_shift", v1::SHIFT, dtype, channels);
  b->Add("wkv", v1::RECURRENT, b->Dtype("wkv_dtype"), {{"head", hidden / head}, {outer, head}, {inner, head}},
         Split{0});
  b->Add("ffn_shift", v1::SHIFT, dtype, channels);
}
void Rwkv5And6(Builder* b) { Rwkv(b, "key", "value"); }
void Rwkv7(Builder* b) { Rwkv(b, "value", "key"); }

struct Family {
  v1::LayoutPreset::FamilyCase number;
  void (*build)(Builder*);
  PresetFamily info;
};

std::vector<Family> MakeFamilies() {
  const PresetFamily::Parameter layers = {"layers", "", "number of layers"};
  const PresetFamily::Parameter kernel = {"conv_kernel", "4", "K"};
  const PresetFamily::Parameter conv_dtype = {"conv_dtype", "BFLOAT16", "of conv"};
  const PresetFamily::Parameter shift_dtype = {"shift_dtype", "BFLOAT16", "of the previous activations"};
  const auto recurrent_dtype = [](const char* tensor) {
    return PresetFamily::Parameter{"recurrent_dtype", "FLOAT32", absl::StrCat("of ", tensor)};
  };
  const std::vector<PresetFamily::Parameter> rwkv = {
      layers,
      {"hidden_size", "", "C, a multiple of D"},
      {"head_size", "64", "D"},
      shift_dtype,
      {"wkv_dtype", "FLOAT32", "of wkv; another for an engine that has it so"}};
  return {
      {v1::LayoutPreset::kMamba1,
       Mamba1,
       {"mamba1",
        "conv [tap K-1, channel I], ssm [channel I, state N]",
        {layers, {"intermediate_size", "", "I"}, {"state_size", "", "N"}, kernel, conv_dtype, recurrent_dtype("ssm")},
        R"({"model_id":"sha256:…","mamba1":{"layers":24,"intermediate_size":1536,"state_size":16}})"}},
      {v1::LayoutPreset::kMamba2,
       Mamba2,
       {"mamba2",
        "conv [tap K-1, channel H*P + 2*G*N], ssm [head H, head_dim P, state N]",
        {layers,
         {"heads", "", "H, a multiple of G"},
         {"head_dim", "", "P"},
         {"state_size", "", "N"},
         {"groups", "1", "G"},
         kernel,
         conv_dtype,
         recurrent_dtype("ssm")},
        R"({"model_id":"sha256:…","mamba2":{"layers":24,"heads":24,"head_dim":64,"state_size":128}})"}},
      {v1::LayoutPreset::kGatedDeltaNet,
       GatedDeltaNet,
       {"gated_delta_net",
        "conv [tap K-1, channel 2*Hk*dk + Hv*dv], delta [head Hv, key dk, value dv]",
        {layers,
         {"key_heads", "", "Hk"},
         {"key_dim", "", "dk, of a head"},
         {"value_heads", "", "Hv, a multiple of Hk"},
         {"value_dim", "", "dv, of a head"},
         kernel,
         conv_dtype,
         recurrent_dtype("delta")},
        R"({"model_id":"sha256:…","gated_delta_net":{"layers":36,"key_heads":16,"key_dim":128,)"
        R"("value_heads":32,"value_dim":128}})"}},
      {v1::LayoutPreset::kKda,
       Kda,
       {"kda",
        "conv [tap K-1, channel H*D + 2*Hk*Dk], or conv_q, conv_k and conv_v, delta [head H, key D, value D]",
        {layers,
         {"heads", "", "H"},
         {"head_dim", "", "D"},
         {"key_heads", "heads", "Hk"},
         {"key_dim", "head_dim", "Dk"},
         kernel,
         conv_dtype,
         {"separate_convs", "false", "a convolution each for q, k and v, as older engines have them"}},
        R"({"model_id":"sha256:…","kda":{"layers":20,"heads":32,"head_dim":128}})"}},
      {v1::LayoutPreset::kLinearAttention,
       LinearAttention,
       {"linear_attention",
        "kv [head H, key D, value D]",
        {layers, {"heads", "", "H"}, {"head_dim", "", "D"}, recurrent_dtype("kv")},
        R"({"model_id":"sha256:…","linear_attention":{"layers":70,"heads":64,"head_dim":128}})"}},
      {v1::LayoutPreset::kShortConv,
       ShortConv,
       {"short_conv",
        "conv [tap K-1, channel C]",
        {layers, {"channels", "", "C"}, kernel, conv_dtype},
        R"({"model_id":"sha256:…","short_conv":{"layers":10,"channels":2048,"conv_kernel":3}})"}},
      {v1::LayoutPreset::kRwkv4,
       Rwkv4,
       {"rwkv4",
        "att_shift [channel C], aa, bb and pp [channel A] in float32, pp at first -1e30, ffn_shift [channel C]",
        {layers, {"hidden_size", "", "C"}, {"attention_size", "hidden_size", "A"}, shift_dtype},
        R"({"model_id":"sha256:…","rwkv4":{"layers":12,"hidden_size":768}})"}},
      {v1::LayoutPreset::kRwkv4Seed,
       Rwkv4Seed,
       {"rwkv4_seed",
        "aa and ab [channel C] in float32, att_x_prev and ffn_x_prev [channel C]",
        {layers, {"hidden_size", "", "C"}, shift_dtype},
        R"({"model_id":"sha256:…","rwkv4_seed":{"layers":12,"hidden_size":768}})"}},
      {v1::LayoutPreset::kRwkv5,
       Rwkv5And6,
       {"rwkv5", "att_shift [channel C], wkv [head C/D, key D, value D], ffn_shift [channel C]", rwkv,
        R"({"model_id":"sha256:…","rwkv5":{"layers":24,"hidden_size":2048}})"}},
      {v1::LayoutPreset::kRwkv6,
       Rwkv5And6,
       {"rwkv6", "att_shift [channel C], wkv [head C/D, key D, value D], ffn_shift [channel C]", rwkv,
        R"({"model_id":"sha256:…","rwkv6":{"layers":24,"hidden_size":2048}})"}},
      {v1::LayoutPreset::kRwkv7,
       Rwkv7,
       {"rwkv7", "att_shift [channel C], wkv [head C/D, value D, key D], ffn_shift [channel C]", rwkv,
        R"({"model_id":"sha256:…","rwkv7":{"layers":12,"hidden_size":768}})"}},
      {v1::LayoutPreset::kHybrid,
       nullptr,
       {"hybrid",
        "those of its parts, each a preset with its layer_ids and a prefix for the names of its tensors",
        {{"parts", "", "presets, none of them a hybrid"}},
        R"({"model_id":"sha256:…","hybrid":{"parts":[{"prefix":"m.","layer_ids":[0,2],"mamba2":)"
        R"({"heads":24,"head_dim":64,"state_size":128}},{"prefix":"c.","layer_ids":[1,3],)"
        R"("short_conv":{"channels":2048}}]}})"}},
  };
}
const std::vector<Family>& Families() {
  static const auto* const families = new std::vector<Family>(MakeFamilies());
  return *families;
}

std::string InitialField(const std::string& name) { return absl::StrCat("initial[\"", name, "\"]"); }

std::optional<PresetFault> Build(const v1::LayoutPreset& preset, v1::Layout* layout) {
  const auto family = std::find_if(Families().begin(), Families().end(),
                                   [&](const Family& f) { return f.number == preset.family_case(); });
  if (family == Families().end()) return PresetFault{"", "names no family that is known here"};
  if (!preset.has_hybrid()) {
    const FieldDescriptor* const field = v1::LayoutPreset::descriptor()->FindFieldByNumber(family->number);
    const Message& parameters = preset.GetReflection()->GetMessage(preset, field);
    Builder builder(preset, family->info, parameters, preset.prefix(), layout);
    family->build(&builder);
    return builder.fault();
  }
  const auto& parts = preset.hybrid().parts();
  if (parts.empty() || parts.size() > kPartsMax)
    return PresetFault{"hybrid.parts", absl::StrCat("must be 1..", kPartsMax)};
  if (!preset.layer_ids().empty()) return PresetFault{"layer_ids", "of a hybrid are those of its parts"};
  if (!preset.prefix().empty()) return PresetFault{"prefix", "of a hybrid are those of its parts"};
  for (int i = 0; i < parts.size(); ++i) {
    const std::string field = absl::StrCat("hybrid.parts[", i, "]");
    const v1::LayoutPreset& part = parts[i];
    if (part.has_hybrid()) return PresetFault{field + ".hybrid", "can't be part of another"};
    if (!part.model_id().empty()) return PresetFault{field + ".model_id", "is the whole hybrid's"};
    if (!part.initial().empty()) return PresetFault{field + ".initial", "is the whole hybrid's"};
    std::optional<PresetFault> fault = Build(part, layout);
    if (fault.has_value()) {
      fault->field = fault->field.empty() ? field : absl::StrCat(field, ".", fault->field);
      return fault;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<PresetFault> LayoutOfPreset(const v1::LayoutPreset& preset, v1::Layout* layout) {
  layout->Clear();
  layout->set_model_id(preset.model_id());
  if (std::optional<PresetFault> fault = Build(preset, layout); fault.has_value()) return fault;
  for (const auto& entry : preset.initial()) {
    const std::string& name = entry.first;
    const auto tensor = std::find_if(layout->mutable_tensors()->begin(), layout->mutable_tensors()->end(),
                                     [&](const v1::TensorSpec& t) { return t.name() == name; });
    if (tensor == layout->mutable_tensors()->end())
      return PresetFault{InitialField(name), "names no tensor that the preset makes"};
    *tensor->mutable_initial() = entry.second;
  }
  return std::nullopt;
}

PresetFields FieldsOfTensor(const v1::LayoutPreset& preset, int tensor) {
  v1::Layout layout;
  const v1::LayoutPreset* part = &preset;
  std::string path;
  if (preset.has_hybrid()) {
    for (int i = 0; layout.tensors_size() <= tensor && i < preset.hybrid().parts_size(); ++i) {
      part = &preset.hybrid().parts(i);
      path = absl::StrCat("hybrid.parts[", i, "].");
      Build(*part, &layout);
    }
  } else {
    Build(preset, &layout);
  }
  const FieldDescriptor* const family = v1::LayoutPreset::descriptor()->FindFieldByNumber(part->family_case());
  return {path + family->name(), path + "prefix", InitialField(layout.tensors(tensor).name())};
}

const std::vector<PresetFamily>& PresetFamilies() {
  static const auto* const infos = [] {
    auto* const all = new std::vector<PresetFamily>;
    for (const Family& family : Families()) all->push_back(family.info);
    return all;
  }();
  return *infos;
}

}  // namespace statepool
