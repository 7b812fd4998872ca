// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// layout: register, from-hf, presets, list, show, size, delete.
#include "client/cli/layout.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <sys/stat.h>

#include <set>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/cli/commands.h"
#include "client/cli/files.h"
#include "client/cli/json.h"
#include "client/cli/layout_hf.h"
#include "client/cli/layout_size.h"
#include "client/cli/output.h"
#include "client/cpp/errors.h"
#include "proto/presets.h"

namespace statepool::cli {
namespace {

using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Struct;

constexpr size_t kLayoutFileBytesMax = 64 << 20;
constexpr size_t kConfigBytesMax = 1 << 20;
constexpr char kFile[] = "FILE";

// The oneof's families, each of whose messages has a preset's parameters.
std::vector<const FieldDescriptor*> Families() {
  const google::protobuf::OneofDescriptor* const family = v1::LayoutPreset::descriptor()->FindOneofByName("family");
  std::vector<const FieldDescriptor*> fields;
  for (int i = 0; i < family->field_count(); ++i) fields.push_back(family->field(i));
  return fields;
}

// Those of the command line; a hybrid is written in a file.
constexpr char kFamilies[] =
    "mamba1|mamba2|gated_delta_net|kda|linear_attention|short_conv|rwkv4|rwkv4_seed|rwkv5|rwkv6|rwkv7";
bool IsHybrid(const FieldDescriptor& family) { return family.number() == v1::LayoutPreset::kHybrid; }

absl::Status SetParameter(absl::string_view argument, Message* preset) {
  const std::vector<std::string> parts = absl::StrSplit(argument, absl::MaxSplits('=', 1));
  const google::protobuf::Descriptor* const type = preset->GetDescriptor();
  const FieldDescriptor* const field = type->FindFieldByName(parts[0]);
  if (parts.size() != 2 || field == nullptr) {
    std::vector<absl::string_view> known;
    for (int i = 0; i < type->field_count(); ++i) known.push_back(type->field(i)->name());
    const absl::string_view nearest = field == nullptr ? Nearest(parts[0], known) : "";
    return UsageError(argument, absl::StrCat("'", argument, "' is no PARAMETER=VALUE of this preset",
                                             nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"),
                                             " (there are ", absl::StrJoin(known, ", "), ")"));
  }
  uint64_t number = 0;
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
    const EnumValueDescriptor* const value = field->enum_type()->FindValueByName(absl::AsciiStrToUpper(parts[1]));
    if (value == nullptr || value->number() == 0) {
      std::vector<absl::string_view> known;
      for (int i = 1; i < field->enum_type()->value_count(); ++i) known.push_back(field->enum_type()->value(i)->name());
      return UsageError(
          parts[0], absl::StrCat(parts[0], " is one of ", absl::AsciiStrToLower(absl::StrJoin(known, ", ")), ", not '",
                                 parts[1], "'"));
    }
    preset->GetReflection()->SetEnum(preset, field, value);
    return absl::OkStatus();
  }
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_BOOL) {
    if (parts[1] != "true" && parts[1] != "false")
      return UsageError(parts[0], absl::StrCat(parts[0], " is true or false, not '", parts[1], "'"));
    preset->GetReflection()->SetBool(preset, field, parts[1] == "true");
    return absl::OkStatus();
  }
  const bool small = field->cpp_type() == FieldDescriptor::CPPTYPE_UINT32;
  const uint64_t most = small ? UINT32_MAX : UINT64_MAX;
  if (!absl::SimpleAtoi(parts[1], &number) || number == 0 || number > most) {
    return UsageError(parts[0], absl::StrCat(parts[0], " is a whole number 1..", most, ", not '", parts[1], "'"));
  }
  if (small) preset->GetReflection()->SetUInt32(preset, field, static_cast<uint32_t>(number));
  else preset->GetReflection()->SetUInt64(preset, field, number);
  return absl::OkStatus();
}

absl::StatusOr<v1::LayoutPreset> PresetFromArguments(const Arguments& args) {
  v1::LayoutPreset preset;
  preset.set_model_id(args.Text("model-id"));
  std::vector<absl::string_view> known;
  for (const FieldDescriptor* family : Families()) {
    if (IsHybrid(*family)) continue;
    known.push_back(family->name());
    if (family->name() != args.Text("preset")) continue;
    Message* const parameters = preset.GetReflection()->MutableMessage(&preset, family);
    std::set<std::string> given;
    for (const std::string& argument : args.operands) {
      const std::string name = argument.substr(0, argument.find('='));
      if (!given.insert(name).second) return UsageError(argument, absl::StrCat(name, " is given twice"));
      if (absl::Status status = SetParameter(argument, parameters); !status.ok()) return status;
    }
    if (args.Has("layer-ids")) {
      const absl::StatusOr<std::vector<uint32_t>> ids = ParseRanges("--layer-ids", args.Text("layer-ids"));
      if (!ids.ok()) return ids.status();
      preset.mutable_layer_ids()->Add(ids->begin(), ids->end());
    }
    return preset;
  }
  return UsageError("--preset", absl::StrCat("--preset is one of ", absl::StrJoin(known, ", ")));
}

int RunRegister(Context& context) {
  const Arguments& args = context.args;
  v1::RegisterLayoutRequest request;
  if (args.Has("preset")) {
    if (!args.Has("model-id")) return Fail(UsageError("--model-id", "--preset needs --model-id: whose state this is"));
    absl::StatusOr<v1::LayoutPreset> preset = PresetFromArguments(args);
    if (!preset.ok()) return Fail(preset.status());
    *request.mutable_preset() = *std::move(preset);
  } else {
    if (args.operands.size() != 1)
      return Fail(UsageError(kFile, "give one FILE, or --preset=FAMILY with its parameters"));
    if (args.Has("model-id"))
      return Fail(UsageError("--model-id", "--model-id goes with --preset; a FILE has its own"));
    const absl::StatusOr<std::string> text = ReadFile(kFile, args.operands[0], kLayoutFileBytesMax);
    if (!text.ok()) return Fail(text.status());
    absl::StatusOr<v1::RegisterLayoutRequest> parsed = LayoutFromJson(*text);
    if (!parsed.ok()) return Fail(parsed.status());
    request = *std::move(parsed);
  }
  if (args.Has("alias")) request.set_alias(args.Text("alias"));
  return Answer(context, context.pool.RegisterLayout(request));
}

int RunFromHf(Context& context) {
  const Arguments& args = context.args;
  if (args.Has("register") && !args.Has("model-id"))
    return Fail(UsageError("--model-id", "--register needs --model-id: whose state this is"));
  if (args.Has("alias") && !args.Has("register")) return Fail(UsageError("--alias", "--alias goes with --register"));
  const absl::StatusOr<std::string> config = ReadFile("CONFIG", args.operands[0], kConfigBytesMax);
  if (!config.ok()) return Fail(config.status());
  absl::StatusOr<v1::Layout> layout = LayoutFromHf(*config, args.Text("model-id"), args.Text("dtype"));
  if (!layout.ok()) return Fail(layout.status());
  if (args.Has("register")) {
    v1::RegisterLayoutRequest request;
    request.set_alias(args.Text("alias"));
    *request.mutable_layout() = *std::move(layout);
    return Answer(context, context.pool.RegisterLayout(request));
  }
  const absl::StatusOr<Json> sizes = SizesOf(*layout);
  if (!sizes.ok()) return Fail(sizes.status());
  Json answer = Json::Object();
  if (context.json) answer.Set("schema", ToJson(*layout));
  Print(context.json, answer.Merge(*sizes));
  return 0;
}

int RunList(Context& context) {
  const absl::StatusOr<v1::ListLayoutsResponse> answer = context.pool.ListLayouts();
  if (!answer.ok()) return Fail(answer.status());
  ListPrinter printer(context.json, "layouts");
  for (const v1::LayoutInfo& layout : answer->layouts()) printer.Add(ToJson(layout));
  printer.Finish();
  return 0;
}

int RunShow(Context& context) {
  return ForEachOperand(context, "layouts", [&](const std::string& layout) -> absl::StatusOr<Json> {
    const absl::StatusOr<v1::LayoutInfo> info = context.pool.GetLayout(layout);
    if (!info.ok()) return info.status();
    return ToJson(*info);
  });
}

// Why there is no layout of this name, which is no file either.
absl::Status NotThere(const std::string& operand, bool is_directory, const absl::Status& status) {
  const client::ErrorDetail error = client::GetErrorDetail(status);
  const std::string what = absl::StrCat("'", operand, "' is ", is_directory ? "a directory" : "no file");
  if (error.reason == "LAYOUT_UNKNOWN") {
    return client::MakeError(error.code, error.reason, kFile,
                             absl::StrCat(what, ", and no layout that is registered; 'layout list' lists those"));
  }
  if (error.reason != "UNREACHABLE") return status;
  return client::MakeError(error.code, error.reason, error.field,
                           absl::StrCat(what, ", so the daemon was asked for a layout of this name: ", error.message));
}

// The layout that the command line describes, from the daemon only if it has to be. *fingerprint is set then.
absl::StatusOr<v1::Layout> LayoutToMeasure(const Context& context, std::string* fingerprint) {
  const Arguments& args = context.args;
  if (args.Has("preset")) {
    const absl::StatusOr<v1::LayoutPreset> preset = PresetFromArguments(args);
    if (!preset.ok()) return preset.status();
    return FromPreset(*preset);
  }
  if (args.operands.size() > 1) return UsageError("FILE", "give one FILE or LAYOUT, or --preset with its parameters");
  struct stat info = {};
  const std::string& operand = args.operands[0];
  const bool is_there = operand == "-" || stat(operand.c_str(), &info) == 0;
  if (!is_there || S_ISDIR(info.st_mode)) {
    absl::StatusOr<v1::LayoutInfo> registered = context.pool.GetLayout(operand);
    if (!registered.ok()) return NotThere(operand, is_there, registered.status());
    *fingerprint = registered->fingerprint();
    return std::move(*registered->mutable_layout());
  }
  const absl::StatusOr<std::string> text = ReadFile(kFile, operand, kLayoutFileBytesMax);
  if (!text.ok()) return text.status();
  absl::StatusOr<v1::RegisterLayoutRequest> request = LayoutFromJson(*text);
  if (!request.ok()) return request.status();
  if (request->has_preset()) return FromPreset(request->preset());
  return std::move(*request->mutable_layout());
}

int RunSize(Context& context) {
  if (context.args.operands.empty() && !context.args.Has("preset")) {
    ListPrinter printer(context.json, "models");
    for (const Model& model : Models()) printer.Add(SizeOfModel(model));
    printer.Finish();
    return 0;
  }
  std::string fingerprint;
  const absl::StatusOr<v1::Layout> layout = LayoutToMeasure(context, &fingerprint);
  if (!layout.ok()) return Fail(layout.status());
  const absl::StatusOr<Json> sizes = SizesOf(*layout);
  if (!sizes.ok()) return Fail(sizes.status());
  Json answer = Json::Object();
  if (!fingerprint.empty()) answer.Set("layout", fingerprint);
  Print(context.json, answer.Merge(*sizes));
  return 0;
}

int RunDelete(Context& context) {
  v1::DeleteLayoutRequest request;
  request.set_allow_missing(context.args.Has("allow-missing"));
  return ForEachOperand(context, "deletions", [&](const std::string& layout) -> absl::StatusOr<Json> {
    request.set_layout(layout);
    const absl::StatusOr<v1::DeleteLayoutResponse> answer = context.pool.DeleteLayout(request);
    if (!answer.ok()) return answer.status();
    return std::move(Json::Object().Set("name", layout).Merge(ToJson(*answer)));
  });
}

int RunPresets(Context& context) {
  if (context.json) {
    Json presets = Json::Array();
    for (const PresetFamily& preset : PresetFamilies()) {
      Json parameters = Json::Array();
      for (const PresetFamily::Parameter& p : preset.parameters) {
        parameters.Add(Json::Object().Set("name", p.name).Set("default", p.fallback).Set("help", p.help));
      }
      presets.Add(
          Json::Object().Set("family", preset.name).Set("parameters", parameters).Set("example", preset.example));
    }
    Print(true, Json::Object().Set("presets", presets));
    return 0;
  }
  for (const PresetFamily& preset : PresetFamilies()) {
    std::vector<Json> rows;
    for (const PresetFamily::Parameter& p : preset.parameters) {
      rows.push_back(Json::Object().Set("parameter", p.name).Set("default", p.fallback).Set("meaning", p.help));
    }
    const std::string text = absl::StrCat(
        preset.name, ": per layer ", preset.tensors, "\n\n", TableAsText("parameters", rows, StdoutColumns()),
        "\nAs a file for 'statepool layout register FILE':\n  ", preset.example, "\n\n");
    fwrite(text.data(), 1, text.size(), stdout);
  }
  return 0;
}

}  // namespace

absl::StatusOr<v1::RegisterLayoutRequest> LayoutFromJson(const std::string& text) {
  Struct file;
  if (absl::Status status = FromJson(kFile, text, &file); !status.ok()) return status;
  v1::RegisterLayoutRequest request;
  const auto has = [&](const char* key) { return file.fields().contains(key); };
  absl::Status status;
  if (has("schema")) {  // as 'layout show -o json' prints it
    std::string schema;
    const auto printed = google::protobuf::util::MessageToJsonString(file.fields().at("schema"), &schema);
    status = printed.ok() ? FromJson(kFile, schema, request.mutable_layout())
                          : UsageError(kFile, std::string(printed.message()));
  } else if (has("layout") || has("preset")) {
    status = FromJson(kFile, text, &request);
  } else if (has("tensors")) {
    status = FromJson(kFile, text, request.mutable_layout());
  } else {
    status = UsageError(kFile, "the JSON has none of layout, preset, tensors or a preset's family at its top level");
    for (const FieldDescriptor* family : Families()) {
      if (has(family->name().c_str())) status = FromJson(kFile, text, request.mutable_preset());
    }
  }
  if (!status.ok()) return status;
  return request;
}

std::vector<Command> LayoutCommands() {
  const Flag preset = {"preset", Flag::kChoice, kFamilies,
                       "make it from a family's parameters; 'layout presets' lists them"};
  const Flag layer_ids = {"layer-ids", Flag::kText, "RANGES",
                          "with --preset: the model's layers that have it, 0-3,7; else 0 to layers - 1"};
  return {
      {"layout register",
       "FILE | PARAMETER=VALUE...",
       0,
       -1,
       "Register a layout: the schema of one model's state.",
       "FILE is JSON: a Layout, a LayoutPreset or a RegisterLayoutRequest of the\n"
       "contract, or what 'layout show -o json' printed. Registering the same layout\n"
       "again is fine, also under a further alias; an alias never changes its layout.\n"
       "What is registered is on disk when this returns.",
       "statepool layout register --alias=my-model --preset=rwkv7 --model-id=sha256:0a1b \\\n"
       "    layers=12 hidden_size=768\n"
       "statepool layout register layout.json --alias=my-model",
       {{"alias", Flag::kText, "NAME", "a name for the layout, besides its fingerprint"},
        preset,
        layer_ids,
        {"model-id", Flag::kText, "ID", "with --preset: digest of the weights, quantisation, adapter"}},
       RunRegister},
      {"layout from-hf",
       "CONFIG",
       1,
       1,
       "Make the layout of a Hugging Face model from its config.json.",
       "The tensors are those of the cache of transformers, for every architecture with\n"
       "recurrent layers; the attention's cache of a hybrid is not part of it. Prints\n"
       "sizes, and with -o json the schema too, which 'layout register' takes. Without\n"
       "--register no daemon is asked.",
       "statepool layout from-hf config.json\n"
       "statepool layout from-hf config.json --register --model-id=sha256:0a1b --alias=my-model",
       {{"register", Flag::kSwitch, "", "register it, as 'layout register' does"},
        {"alias", Flag::kText, "NAME", "with --register: a name for the layout"},
        {"model-id", Flag::kText, "ID", "digest of the weights, quantisation, adapter"},
        {"dtype", Flag::kChoice, "float32|float16|bfloat16", "of the weights; else what the config says"}},
       RunFromHf},
      {"layout presets",
       "",
       0,
       0,
       "List the presets' families and parameters, with examples.",
       "Asks no daemon.",
       "statepool layout presets",
       {},
       RunPresets},
      {"layout list",
       "",
       0,
       0,
       "List all layouts.",
       "In the order of their fingerprints.",
       "statepool layout list",
       {},
       RunList},
      {"layout show",
       "LAYOUT...",
       1,
       -1,
       "Show layouts by alias or fingerprint.",
       "With -o json the schema can be registered elsewhere.",
       "statepool layout show my-model\n"
       "statepool layout show my-model -o json | statepool --server=other:7070 layout register -",
       {},
       RunShow},
      {"layout size",
       "[FILE | LAYOUT | PARAMETER=VALUE...]",
       0,
       -1,
       "Tell how many bytes a state has, tensor by tensor.",
       "Without anything: of models that are well known. A FILE as for 'layout\n"
       "register' or a --preset is computed here, without a daemon. What is no file is a\n"
       "registered layout's alias or fingerprint, and the daemon is asked.",
       "statepool layout size --preset=mamba2 layers=48 heads=80 head_dim=64 state_size=128\n"
       "statepool layout size my-model",
       {preset, layer_ids},
       RunSize},
      {"layout delete",
       "LAYOUT...",
       1,
       -1,
       "Forget layouts and all their aliases.",
       "Refused while a name still has the layout (exit 4). Forgotten on disk too when\n"
       "this returns.",
       "statepool layout delete my-model",
       {{"allow-missing", Flag::kSwitch, "", "an absent layout is no error"}},
       RunDelete},
  };
}

}  // namespace statepool::cli
