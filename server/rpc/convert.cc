// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/rpc/convert.h"

#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/checksum.h"
#include "proto/presets.h"
#include "server/core/error.h"
#include "server/rpc/errors.h"

namespace statepool {
namespace {

constexpr int64_t kSecondsMax = 315'576'000'000;  // 10,000 years, as google.protobuf.Duration bounds it

absl::StatusOr<absl::Duration> ToDuration(const google::protobuf::Duration& proto, absl::string_view field) {
  const bool in_range = proto.seconds() >= -kSecondsMax && proto.seconds() <= kSecondsMax &&
                        proto.nanos() > -1'000'000'000 && proto.nanos() < 1'000'000'000;
  const bool one_sign = proto.seconds() == 0 || proto.nanos() == 0 || (proto.seconds() < 0) == (proto.nanos() < 0);
  if (!in_range || !one_sign) return InvalidArgument("INVALID_OPTION", field, "this is no valid duration");
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

absl::StatusOr<absl::Time> ToTime(const google::protobuf::Timestamp& proto, absl::string_view field) {
  constexpr int64_t kFirst = -62'135'596'800, kLast = 253'402'300'799;  // years 1 to 9999
  if (proto.seconds() < kFirst || proto.seconds() > kLast || proto.nanos() < 0 || proto.nanos() > 999'999'999) {
    return InvalidArgument("INVALID_OPTION", field, "this is no valid time");
  }
  return absl::FromUnixSeconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

absl::Status UnknownValue(absl::string_view reason, absl::string_view field, int value) {
  return InvalidArgument(reason, field, absl::StrCat(field, ": this daemon does not know the value ", value));
}

absl::StatusOr<DType> ToDType(v1::DType dtype, absl::string_view field) {
  if (dtype < v1::FLOAT32 || dtype > v1::INT64) return UnknownValue("INVALID_LAYOUT", field, dtype);
  return static_cast<DType>(dtype);
}

// Fields of its errors are relative to the layout.
absl::StatusOr<LayoutSpec> ToLayoutSpec(const v1::Layout& proto) {
  LayoutSpec spec;
  spec.model_id = proto.model_id();
  for (int i = 0; i < proto.tensors_size(); ++i) {
    const v1::TensorSpec& in = proto.tensors(i);
    const std::string field = absl::StrCat("tensors[", i, "]");
    TensorSpec out;
    out.name = in.name();
    if (in.kind() < v1::CONV || in.kind() > v1::OTHER) {
      return UnknownValue("INVALID_LAYOUT", absl::StrCat(field, ".kind"), in.kind());
    }
    out.kind = static_cast<TensorKind>(in.kind());
    out.layers.assign(in.layers().begin(), in.layers().end());
    const absl::StatusOr<DType> dtype = ToDType(in.dtype(), absl::StrCat(field, ".dtype"));
    if (!dtype.ok()) return dtype.status();
    out.dtype = *dtype;
    for (const v1::Axis& axis : in.axes()) out.axes.push_back({axis.name(), axis.size()});
    switch (in.initial().value_case()) {
      case v1::InitialValue::kConstant: out.initial = ConstantInitial{in.initial().constant()}; break;
      case v1::InitialValue::kData: out.initial = DataInitial{in.initial().data()}; break;
      case v1::InitialValue::VALUE_NOT_SET: break;
    }
    if (in.has_sharding()) {
      out.sharding.emplace();
      out.sharding->axis = in.sharding().axis();
      const v1::Sharding& sharding = in.sharding();
      for (const auto& [name, size] : {std::pair("section_groups", sharding.section_groups_size()),
                                       std::pair("section_shared", sharding.section_shared_size())}) {
        if (size == 0 || size == sharding.sections_size()) continue;
        return InvalidArgument("INVALID_LAYOUT", absl::StrCat(field, ".sharding.", name),
                               absl::StrCat("there are ", size, " for ", sharding.sections_size(), " sections"));
      }
      for (int k = 0; k < sharding.sections_size(); ++k) {
        Sharding::Section& section = out.sharding->sections.emplace_back();
        section.size = sharding.sections(k);
        if (sharding.section_groups_size() > 0) section.groups = sharding.section_groups(k);
        if (sharding.section_shared_size() > 0) section.shared = sharding.section_shared(k);
      }
    }
    spec.tensors.push_back(std::move(out));
  }
  return spec;
}

// What is wrong with the layout that `preset` made, in the preset's fields.
absl::Status OfPreset(const absl::Status& status, const v1::LayoutPreset& preset, const v1::Layout& made) {
  const std::string field = GetErrorDetail(status).field;
  const absl::string_view why = absl::StripPrefix(status.message(), absl::StrCat("invalid layout: ", field, ": "));
  absl::string_view of_tensor = field;
  size_t tensor = 0;
  if (field == "model_id") return InvalidArgument("INVALID_LAYOUT", "preset.model_id", why);
  if (!absl::ConsumePrefix(&of_tensor, "tensors[") ||
      !absl::SimpleAtoi(of_tensor.substr(0, of_tensor.find(']')), &tensor))
    return InvalidArgument("INVALID_LAYOUT", preset.initial().empty() ? "preset" : "preset.initial", why);
  of_tensor.remove_prefix(of_tensor.find(']') + 1);
  const PresetFields fields = FieldsOfTensor(preset, static_cast<int>(tensor));
  if (absl::StartsWith(of_tensor, ".initial"))
    return InvalidArgument("INVALID_LAYOUT", absl::StrCat("preset.", fields.initial), why);
  return InvalidArgument("INVALID_LAYOUT",
                         absl::StrCat("preset.", of_tensor == ".name" ? fields.prefix : fields.family),
                         absl::StrCat("tensor '", made.tensors(static_cast<int>(tensor)).name(), "': ", why));
}

absl::StatusOr<LayoutRef> ToLayout(const v1::LayoutPreset& preset) {
  v1::Layout made;
  if (const std::optional<PresetFault> fault = LayoutOfPreset(preset, &made); fault.has_value()) {
    if (fault->field.empty()) return InvalidArgument("MISSING_FIELD", "preset", fault->what);
    return InvalidArgument("INVALID_LAYOUT", absl::StrCat("preset.", fault->field), fault->what);
  }
  absl::StatusOr<LayoutSpec> spec = ToLayoutSpec(made);
  absl::StatusOr<LayoutRef> layout = spec.ok() ? Layout::Create(*std::move(spec)) : spec.status();
  if (!layout.ok()) return OfPreset(layout.status(), preset, made);
  return layout;
}

void FillLayout(const LayoutSpec& spec, bool with_data, v1::Layout* out) {
  out->set_model_id(spec.model_id);
  for (const TensorSpec& in : spec.tensors) {
    v1::TensorSpec* tensor = out->add_tensors();
    tensor->set_name(in.name);
    tensor->set_kind(static_cast<v1::TensorKind>(in.kind));
    tensor->mutable_layers()->Add(in.layers.begin(), in.layers.end());
    tensor->set_dtype(static_cast<v1::DType>(in.dtype));
    for (const Axis& axis : in.axes) {
      v1::Axis* to = tensor->add_axes();
      to->set_name(axis.name);
      to->set_size(axis.size);
    }
    if (const auto* constant = std::get_if<ConstantInitial>(&in.initial)) {
      tensor->mutable_initial()->set_constant(constant->value);
    } else if (const auto* data = std::get_if<DataInitial>(&in.initial)) {
      v1::InitialValue* const initial = tensor->mutable_initial();
      if (with_data) initial->set_data(data->bytes);
    }
    if (in.sharding.has_value()) {
      tensor->mutable_sharding()->set_axis(in.sharding->axis);
      const std::vector<Sharding::Section>& sections = in.sharding->sections;
      const bool shared = absl::c_any_of(sections, [](const Sharding::Section& s) { return s.shared; });
      const bool grouped =
          shared || absl::c_any_of(sections, [](const Sharding::Section& s) { return s.groups != s.size; });
      for (const Sharding::Section& section : sections) {
        tensor->mutable_sharding()->add_sections(section.size);
        if (grouped) tensor->mutable_sharding()->add_section_groups(section.groups);
        if (shared) tensor->mutable_sharding()->add_section_shared(section.shared);
      }
    }
  }
}

void FillVersionInfo(const VersionInfo& version, v1::VersionInfo* out) {
  out->set_position(version.position);
  out->set_version_id(version.id);
  out->set_parent_version_id(version.parent);
  out->set_exactness(static_cast<v1::Exactness>(version.exactness));
  out->set_checksum(ChecksumToHex(version.checksum));
  out->set_tier(static_cast<v1::Tier>(version.tier));
}

}  // namespace

absl::StatusOr<NameKey> ToNameKey(const v1::NameRef& name, absl::string_view field) {
  switch (name.name_case()) {
    case v1::NameRef::kSequence: return NameKey{kDefaultTenant, NameKind::kSequence, name.sequence()};
    case v1::NameRef::kSnapshot: return NameKey{kDefaultTenant, NameKind::kSnapshot, name.snapshot()};
    case v1::NameRef::kPrefix: return NameKey{kDefaultTenant, NameKind::kPrefix, name.prefix()};
    case v1::NameRef::NAME_NOT_SET: break;
  }
  return InvalidArgument("MISSING_FIELD", field, absl::StrCat(field, ": set a sequence, a snapshot or a prefix"));
}

absl::StatusOr<NameOptions> ToNameOptions(const v1::NameOptions& options, absl::string_view field) {
  NameOptions out;
  if (options.durability() != v1::DURABILITY_UNSPECIFIED) {
    if (options.durability() < v1::VOLATILE || options.durability() > v1::SYNC) {
      return UnknownValue("INVALID_OPTION", absl::StrCat(field, ".durability"), options.durability());
    }
    out.durability = static_cast<Durability>(options.durability());
  }
  if (options.has_max_history()) out.max_history = options.max_history();
  switch (options.expiration_case()) {
    case v1::NameOptions::kTtl: {
      const absl::StatusOr<absl::Duration> ttl = ToDuration(options.ttl(), absl::StrCat(field, ".ttl"));
      if (!ttl.ok()) return ttl.status();
      out.ttl = *ttl;
      break;
    }
    case v1::NameOptions::kExpireTime: {
      const absl::StatusOr<absl::Time> time = ToTime(options.expire_time(), absl::StrCat(field, ".expire_time"));
      if (!time.ok()) return time.status();
      out.expire_time = *time;
      break;
    }
    case v1::NameOptions::kNeverExpire: out.never_expire = options.never_expire(); break;
    case v1::NameOptions::EXPIRATION_NOT_SET: break;
  }
  return out;
}

absl::StatusOr<Exactness> ToExactness(v1::Exactness exactness, absl::string_view field) {
  if (exactness == v1::EXACTNESS_UNSPECIFIED) return Exactness::kExact;
  if (exactness < v1::EXACT || exactness > v1::LOSSY) return UnknownValue("INVALID_OPTION", field, exactness);
  return static_cast<Exactness>(exactness);
}

std::optional<Select> ToSelect(const v1::Select& select, bool given) {
  if (!given) return std::nullopt;
  return Select{{select.tensors().begin(), select.tensors().end()}, {select.layers().begin(), select.layers().end()}};
}

absl::StatusOr<NameKind> ToNameKind(v1::NameKind kind, absl::string_view field) {
  if (kind == v1::NAME_KIND_UNSPECIFIED) return NameKind::kSequence;
  if (kind < v1::SEQUENCE || kind > v1::PREFIX) return UnknownValue("INVALID_OPTION", field, kind);
  return static_cast<NameKind>(kind);
}

absl::StatusOr<LayoutRef> ToLayout(const v1::RegisterLayoutRequest& request) {
  switch (request.schema_case()) {
    case v1::RegisterLayoutRequest::kLayout: {
      absl::StatusOr<LayoutSpec> spec = ToLayoutSpec(request.layout());
      if (!spec.ok()) return BelowField(spec.status(), "layout");
      absl::StatusOr<LayoutRef> layout = Layout::Create(*std::move(spec));
      if (!layout.ok()) return BelowField(layout.status(), "layout");
      return layout;
    }
    case v1::RegisterLayoutRequest::kPreset: return ToLayout(request.preset());
    case v1::RegisterLayoutRequest::SCHEMA_NOT_SET: break;
  }
  return InvalidArgument("MISSING_FIELD", "layout", "set a layout or a preset");
}

void FillNameRef(const NameKey& key, v1::NameRef* out) {
  switch (key.kind) {
    case NameKind::kSequence: out->set_sequence(key.name); break;
    case NameKind::kSnapshot: out->set_snapshot(key.name); break;
    case NameKind::kPrefix: out->set_prefix(key.name); break;
  }
}

void FillNameInfo(const NameInfo& info, v1::NameInfo* out) {
  FillNameRef(info.key, out->mutable_name());
  if (info.layout != nullptr) {
    out->set_layout(info.layout->fingerprint());
    out->set_state_bytes(info.layout->state_bytes());
  }
  out->set_position(info.version.position);
  out->set_revision(info.revision);
  out->set_durable_revision(info.durable_revision);
  if (info.flush_lag > absl::ZeroDuration()) *out->mutable_flush_lag() = ToProto(info.flush_lag);
  out->set_checksum(ChecksumToHex(info.version.checksum));
  out->set_exactness(static_cast<v1::Exactness>(info.version.exactness));
  out->set_tier(static_cast<v1::Tier>(info.version.tier));
  out->set_version_id(info.version.id);
  out->set_parent_version_id(info.version.parent);
  out->set_attachment_bytes(info.version.attachment_bytes);
  out->set_durability(ToProto(info.durability));
  out->set_max_history(info.max_history);
  for (const VersionInfo& version : info.history) FillVersionInfo(version, out->add_history());
  if (info.rollback_tokens.has_value()) out->set_rollback_tokens(*info.rollback_tokens);
  if (info.ttl != absl::InfiniteDuration()) *out->mutable_ttl() = ToProto(info.ttl);
  if (info.expire_time != absl::InfiniteFuture()) *out->mutable_expire_time() = ToProto(info.expire_time);
  *out->mutable_create_time() = ToProto(info.create_time);
  out->set_replayed(info.replayed);
}

void FillLayoutInfo(const LayoutRegistry::Entry& entry, v1::LayoutInfo* out, bool with_data) {
  out->set_fingerprint(entry.layout->fingerprint());
  for (const std::string& alias : entry.aliases) out->add_aliases(alias);
  FillLayout(entry.layout->spec(), with_data, out->mutable_layout());
  out->set_state_bytes(entry.layout->state_bytes());
}

v1::Durability ToProto(Durability durability) { return static_cast<v1::Durability>(durability); }

google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration proto;
  proto.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  proto.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
  return proto;
}

google::protobuf::Timestamp ToProto(absl::Time time) {
  google::protobuf::Timestamp proto;
  const int64_t seconds = absl::ToUnixSeconds(time);  // rounds down, so nanos are never negative
  proto.set_seconds(seconds);
  proto.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
  return proto;
}

}  // namespace statepool
