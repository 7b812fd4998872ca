// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cli/layout_hf.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "client/cli/args.h"
#include "client/cli/json.h"
#include "client/cli/layout_size.h"

namespace statepool::cli {

extern const char kHfModels[];  // hf_models.json: CMakeLists.txt

namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::ListValue;
using google::protobuf::Message;
using google::protobuf::Struct;
using google::protobuf::Value;

constexpr char kConfig[] = "CONFIG";
constexpr uint64_t kSizeMax = uint64_t{1} << 32;
constexpr uint64_t kLayersMax = 4096;

// Null: it is not there.
const Value* Find(const Struct& in, const std::string& key) {
  const auto it = in.fields().find(key);
  return it == in.fields().end() ? nullptr : &it->second;
}
std::string TextOf(const Struct& in, const std::string& key) {
  const Value* const value = Find(in, key);
  return value == nullptr ? "" : value->string_value();
}
const Struct& StructOf(const Struct& in, const std::string& key) {
  const Value* const value = Find(in, key);
  return value == nullptr ? Struct::default_instance() : value->struct_value();
}
const ListValue& ListOf(const Struct& in, const std::string& key) {
  const Value* const value = Find(in, key);
  return value == nullptr ? ListValue::default_instance() : value->list_value();
}
double NumberOf(const Struct& in, const std::string& key) {
  const Value* const value = Find(in, key);
  return value == nullptr ? 0 : value->number_value();
}

// Python writes numbers into config.json that JSON does not have; none of them is a size: null in their place.
std::string WithoutNonNumbers(absl::string_view json) {
  std::string out;
  char quote = 0;  // that the string began with: protobuf takes both
  for (size_t i = 0; i < json.size(); ++i) {
    if (quote != 0 && json[i] == '\\' && i + 1 < json.size()) {
      absl::StrAppend(&out, json.substr(i++, 2));
      continue;
    }
    if (quote != 0) quote = json[i] == quote ? char{0} : quote;
    else if (json[i] == '"' || json[i] == '\'') quote = json[i];
    size_t length = 0;
    for (const absl::string_view word : {"NaN", "Infinity", "-Infinity"}) {
      if (quote == 0 && absl::StartsWith(json.substr(i), word)) length = word.size();
    }
    if (length == 0) {
      out += json[i];
    } else {
      out += "null";
      i += length - 1;
    }
  }
  return out;
}

const Struct& Table() {
  static const auto* const table = [] {
    auto* const parsed = new Struct;
    if (!google::protobuf::util::JsonStringToMessage(kHfModels, parsed).ok()) abort();  // it is compiled in
    return parsed;
  }();
  return *table;
}

// Of the table, completed by that of the model that it is like. Nothing: there is none.
std::optional<Struct> EntryOf(const std::string& model_type) {
  const Value* const value = Find(StructOf(Table(), "models"), model_type);
  if (value == nullptr) return std::nullopt;
  const Struct& own = value->struct_value();
  Struct entry = EntryOf(TextOf(own, "like")).value_or(Struct());
  for (const auto& [key, field] : own.fields()) {
    if (key != "defaults") {
      (*entry.mutable_fields())[key] = field;
      continue;
    }
    Struct& defaults = *(*entry.mutable_fields())[key].mutable_struct_value();
    for (const auto& [name, fallback] : field.struct_value().fields()) (*defaults.mutable_fields())[name] = fallback;
  }
  return entry;
}

absl::Status Unknown(const std::string& model_type) {
  const Value* const why = Find(StructOf(Table(), "not_supported"), model_type);
  if (why != nullptr) {
    return UsageError("model_type",
                      absl::StrCat("there is no layout for model_type '", model_type, "': ", why->string_value()));
  }
  std::set<std::string> known;
  for (const auto& [name, entry] : StructOf(Table(), "models").fields()) known.insert(name);
  return UsageError("model_type", absl::StrCat("model_type '", model_type, "' has no recurrent state that is known ",
                                               "here; known are ", absl::StrJoin(known, ", "),
                                               ". Others are written with the presets or tensor by tensor"));
}

// The model whose state it is: that of `keys`, or of a config in it, which *keys becomes then.
absl::StatusOr<std::string> TextConfig(Struct* keys) {
  while (true) {
    const std::string model_type = TextOf(*keys, "model_type");
    if (model_type.empty()) return UsageError("model_type", "the config has no model_type");
    const std::optional<Struct> entry = EntryOf(model_type);
    const Value* const inner = Find(*keys, "text_config");
    const bool has_inner = inner != nullptr && inner->has_struct_value();
    if (entry.has_value() && Find(*entry, "text_config") != nullptr) {
      const Value* const flat = Find(*entry, "flat");
      Struct text;
      if (has_inner) text = inner->struct_value();
      else if (flat != nullptr && flat->bool_value()) text = *keys;
      Value& named = (*text.mutable_fields())["model_type"];
      if (named.string_value().empty() || named.string_value() == model_type) named = *Find(*entry, "text_config");
      *keys = std::move(text);
    } else if (entry.has_value()) {
      return model_type;
    } else if (has_inner && !TextOf(inner->struct_value(), "model_type").empty()) {
      *keys = Struct(inner->struct_value());
    } else {
      return Unknown(model_type);
    }
  }
}

// Reads one config with its model's entry, until something is wrong.
class Reader {
 public:
  Reader(std::string type, Struct keys, Struct entry, std::string dtype)
      : type_(std::move(type)), keys_(std::move(keys)), entry_(std::move(entry)), dtype_(std::move(dtype)) {}

  absl::StatusOr<v1::Layout> Layout() {
    v1::LayoutPreset preset;
    v1::HybridPreset& hybrid = *preset.mutable_hybrid();
    v1::Layout layout;
    for (const Value& part : ListOf(entry_, "parts").values()) AddPart(part.struct_value(), &hybrid);
    for (const Value& tensor : ListOf(entry_, "tensors").values()) AddTensor(tensor.struct_value(), &layout);
    if (hybrid.parts().empty() && layout.tensors().empty()) Wrong("layer_types", "has no recurrent layers");
    if (!status_.ok()) return status_;
    if (!layout.tensors().empty()) return layout;
    return FromPreset(hybrid.parts_size() == 1 ? hybrid.parts(0) : preset);
  }

 private:
  // ---- parts

  void AddPart(const Struct& part, v1::HybridPreset* hybrid) {
    const std::vector<uint32_t> layers = LayersOf(part);
    if (layers.empty()) return;
    v1::LayoutPreset& preset = *hybrid->add_parts();
    preset.set_prefix(TextOf(part, "prefix"));
    preset.mutable_layer_ids()->Add(layers.begin(), layers.end());
    const FieldDescriptor* const family = v1::LayoutPreset::descriptor()->FindFieldByName(TextOf(part, "family"));
    Message* const message = preset.GetReflection()->MutableMessage(&preset, family);
    const auto& fields = StructOf(part, "parameters").fields();
    for (const auto& [name, value] : std::map<std::string, Value>(fields.begin(), fields.end())) {
      const FieldDescriptor* const field = message->GetDescriptor()->FindFieldByName(name);
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
        message->GetReflection()->SetEnumValue(message, field, DtypeOf(value.string_value()));
      } else {
        message->GetReflection()->SetUInt64(message, field, Size(value, name));
      }
    }
  }

  void AddTensor(const Struct& tensor, v1::Layout* layout) {
    const std::vector<uint32_t> layers = LayersOf(tensor);
    if (layers.empty()) return;
    const std::string name = TextOf(tensor, "name");
    v1::TensorSpec& spec = *layout->add_tensors();
    spec.set_name(name);
    v1::TensorKind kind = v1::TENSOR_KIND_UNSPECIFIED;
    v1::TensorKind_Parse(absl::AsciiStrToUpper(TextOf(tensor, "kind")), &kind);
    spec.set_kind(kind);
    spec.set_dtype(DtypeOf(TextOf(tensor, "dtype")));
    spec.mutable_layers()->Add(layers.begin(), layers.end());
    for (const Value& value : ListOf(tensor, "axes").values()) {
      const std::string axis = value.list_value().values(0).string_value();
      if (axis == TextOf(tensor, "shard_axis"))
        spec.mutable_sharding()->set_axis(static_cast<uint32_t>(spec.axes_size()));
      v1::Axis& added = *spec.add_axes();
      added.set_name(axis);
      added.set_size(Size(value.list_value().values(1), absl::StrCat(name, ".", axis)));
    }
    for (const Value& section : ListOf(tensor, "sections").values()) {
      const std::string what = absl::StrCat("a section of ", name);
      spec.mutable_sharding()->add_sections(Size(*Find(section.struct_value(), "size"), what));
      spec.mutable_sharding()->add_section_groups(Size(*Find(section.struct_value(), "groups"), what));
      spec.mutable_sharding()->add_section_shared(false);
    }
    const Value* const initial = Find(tensor, "initial");
    if (initial == nullptr) return;
    const std::optional<double> constant = Number(*initial);
    if (!constant.has_value()) Wrong(name, absl::StrCat("does not say what ", name, " is at first"));
    if (constant.value_or(0) != 0) spec.mutable_initial()->set_constant(*constant);
  }

  v1::DType DtypeOf(const std::string& name) const {
    v1::DType dtype = v1::DTYPE_UNSPECIFIED;
    v1::DType_Parse(absl::AsciiStrToUpper(name == "model" ? dtype_ : name), &dtype);
    return dtype;
  }

  // ---- sizes

  // Null: the config does not have it.
  const Value* Key(const std::string& path) const {
    const std::vector<std::string> keys = absl::StrSplit(path, '.');
    const Value* value = Find(keys_, keys[0]);
    if (value == nullptr) value = Find(StructOf(entry_, "defaults"), keys[0]);
    for (size_t i = 1; i < keys.size() && value != nullptr; ++i) {
      int at = 0;
      if (value->has_struct_value()) {
        value = Find(value->struct_value(), keys[i]);
      } else if (value->has_list_value() && absl::SimpleAtoi(keys[i], &at) && at < value->list_value().values_size()) {
        value = &value->list_value().values(at);
      } else {
        value = nullptr;
      }
    }
    return value;
  }

  // Nothing: the config does not have it, or it is no finite number. `size` is the table's, or a number of the
  // config's.
  std::optional<double> Number(const Value& size) const {
    if (size.kind_case() == Value::kStringValue) {
      const Value* const value = Key(size.string_value());
      if (value == nullptr || value->kind_case() != Value::kNumberValue) return std::nullopt;
      return value->number_value();
    }
    if (size.kind_case() != Value::kStructValue) return size.number_value();
    const auto& [operation, operands] = *size.struct_value().fields().begin();
    std::vector<double> known;
    for (const Value& operand : operands.list_value().values()) {
      const std::optional<double> number = Number(operand);
      if (number.has_value()) known.push_back(*number);
    }
    if (operation == "first") return known.empty() ? std::nullopt : std::optional(known[0]);
    if (known.size() < static_cast<size_t>(operands.list_value().values_size())) return std::nullopt;
    const double result = Apply(operation, known);
    return std::isfinite(result) ? std::optional(result) : std::nullopt;
  }

  static double Apply(const std::string& operation, const std::vector<double>& of) {
    if (operation == "sum") return std::accumulate(of.begin(), of.end(), 0.0);
    if (operation == "product") return std::accumulate(of.begin(), of.end(), 1.0, std::multiplies<>());
    if (operation == "least") return *std::min_element(of.begin(), of.end());
    if (operation == "quotient") return std::floor(of[0] / of[1]);
    return std::ceil(of[0] / of[1]) * of[1];  // round_up
  }

  // `least` after a fault, so that whoever goes on divides by nothing.
  uint64_t Size(const Value& size, const std::string& what, uint64_t least = 1, uint64_t most = kSizeMax) {
    const std::optional<double> number = Number(size);
    if (number.has_value() && *number == std::floor(*number) && *number >= static_cast<double>(least) &&
        *number <= static_cast<double>(most)) {
      return static_cast<uint64_t>(*number);
    }
    const std::string said =
        number.has_value() ? absl::StrCat("is ", *number) : std::string("can't be told from the config");
    Wrong(size.kind_case() == Value::kStringValue ? size.string_value() : what,
          absl::StrCat(what, " ", said, ", and must be a whole number ", least, "..", most));
    return least;
  }

  // ---- layers

  std::vector<uint32_t> LayersOf(const Struct& part) {
    const Value* const own = Find(part, "layers");
    for (const Value& rule : (own != nullptr ? own->list_value() : ListOf(entry_, "layers")).values()) {
      std::optional<std::vector<uint32_t>> layers = LayersBy(rule.struct_value());
      if (layers.has_value()) return *std::move(layers);
    }
    return {};
  }

  // Nothing: the rule does not apply.
  std::optional<std::vector<uint32_t>> LayersBy(const Struct& rule) {
    if (const Value* const all = Find(rule, "all"); all != nullptr) {
      return Where(Count(*all), [](uint64_t) { return true; });
    }
    if (Find(rule, "in") != nullptr) return LayersIn(rule);
    if (Find(rule, "listed") != nullptr || Find(rule, "not_listed") != nullptr) return LayersListed(rule);
    const bool every = Find(rule, "every") != nullptr;
    const uint64_t period = Size(*Find(rule, every ? "every" : "not_every"), "the period of layers");
    const uint64_t offset = Size(*Find(rule, "offset"), "the offset of layers", 0);
    const double from = NumberOf(rule, "from");
    return Where(Count(*Find(rule, "of")),
                 [&](uint64_t i) { return every == (static_cast<double>(i) >= from && i % period == offset); });
  }

  std::optional<std::vector<uint32_t>> LayersIn(const Struct& rule) {
    const Value* const key = Key(TextOf(rule, "in"));
    if (key == nullptr || (!key->has_list_value() && key->kind_case() != Value::kStringValue)) return std::nullopt;
    std::vector<std::string> types;
    for (const Value& type : key->list_value().values()) types.push_back(type.string_value());
    for (const char letter : key->string_value()) types.emplace_back(1, letter);
    const Value* const layers = Find(keys_, "num_hidden_layers");
    if (TextOf(rule, "in") == "layer_types" && layers != nullptr && layers->kind_case() == Value::kNumberValue &&
        layers->number_value() != static_cast<double>(types.size())) {
      Wrong("layer_types",
            absl::StrCat("is of ", types.size(), " layers, and num_hidden_layers is ", layers->number_value()));
    }
    const Value* const repeat_to = Find(rule, "repeat_to");
    const uint64_t count = repeat_to != nullptr && !types.empty() ? Count(*repeat_to) : types.size();
    if (count > kLayersMax) {
      Wrong(TextOf(rule, "in"), absl::StrCat("has ", count, " layers, more than ", kLayersMax));
      return std::nullopt;
    }
    std::set<std::string> values;
    for (const Value& value : ListOf(rule, "values").values()) values.insert(value.string_value());
    return Where(count, [&](uint64_t i) { return values.contains(types[i % types.size()]); });
  }

  std::optional<std::vector<uint32_t>> LayersListed(const Struct& rule) {
    const bool is_listed = Find(rule, "listed") != nullptr;
    const std::string name = TextOf(rule, is_listed ? "listed" : "not_listed");
    const Value* const key = Key(name);
    if (key == nullptr || !key->has_list_value()) return std::nullopt;
    const auto first = static_cast<uint64_t>(NumberOf(rule, "first"));
    std::set<uint32_t> listed;
    for (const Value& value : key->list_value().values()) {
      if (value.kind_case() != Value::kNumberValue) {
        Wrong(name, absl::StrCat(name, " is no list of numbers"));
        return std::nullopt;
      }
      listed.insert(static_cast<uint32_t>(Size(value, name, first, kLayersMax) - first));
    }
    if (is_listed) return std::vector<uint32_t>(listed.begin(), listed.end());
    return Where(Count(*Find(rule, "of")), [&](uint64_t i) { return !listed.contains(static_cast<uint32_t>(i)); });
  }

  uint64_t Count(const Value& count) { return Size(count, "the number of layers", 0, kLayersMax); }

  static std::vector<uint32_t> Where(uint64_t count, const std::function<bool(uint64_t)>& is_wanted) {
    std::vector<uint32_t> layers;
    for (uint64_t i = 0; i < count; ++i) {
      if (is_wanted(i)) layers.push_back(static_cast<uint32_t>(i));
    }
    return layers;
  }

  void Wrong(const std::string& field, absl::string_view what) {
    if (status_.ok()) status_ = UsageError(field, absl::StrCat("this config of ", type_, ": ", what));
  }

  const std::string type_;
  const Struct keys_, entry_;
  const std::string dtype_;  // of the model
  absl::Status status_;
};

// The first that says one: what the caller wants, the model's own config, the config around it.
absl::StatusOr<std::string> DtypeOfModel(const std::string& wanted, const Struct& keys, const Struct& outer) {
  std::vector<std::string> said = {wanted};
  for (const Struct* config : {&keys, &outer}) {
    for (const char* key : {"dtype", "torch_dtype"}) {
      const auto it = config->fields().find(key);
      if (it == config->fields().end() || it->second.has_null_value()) continue;
      if (!it->second.has_string_value())
        return UsageError("dtype", "the dtype is no text: one of float32, float16, bfloat16");
      said.push_back(it->second.string_value());
    }
  }
  said.emplace_back("float32");
  const std::string& first = *std::find_if(said.begin(), said.end(), [](const std::string& s) { return !s.empty(); });
  const std::string name(absl::StripPrefix(first, "torch."));
  if (name == "float32" || name == "float16" || name == "bfloat16") return name;
  return UsageError("dtype", absl::StrCat("'", name, "' is no dtype of a model: one of float32, float16, bfloat16"));
}

}  // namespace

absl::StatusOr<v1::Layout> LayoutFromHf(const std::string& config, const std::string& model_id,
                                        const std::string& dtype) {
  Struct outer;
  if (absl::Status status = FromJson(kConfig, WithoutNonNumbers(config), &outer); !status.ok()) return status;
  Struct keys = outer;
  const absl::StatusOr<std::string> type = TextConfig(&keys);
  if (!type.ok()) return type.status();
  const absl::StatusOr<std::string> model_dtype = DtypeOfModel(dtype, keys, outer);
  if (!model_dtype.ok()) return model_dtype.status();
  absl::StatusOr<v1::Layout> layout = Reader(*type, std::move(keys), *EntryOf(*type), *model_dtype).Layout();
  if (layout.ok()) layout->set_model_id(model_id);
  return layout;
}

}  // namespace statepool::cli
