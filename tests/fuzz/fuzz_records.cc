// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Keys and values of the cold store: decoding takes exactly what encoding gives, and nothing breaks it.
//
// Input: a byte for what is decoded, and a value without its checksum, which is made here: no fuzzer finds one.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>
#include <string>

#include "server/core/name_table.h"
#include "server/tiers/record_codec.h"
#include "tests/fuzz/input.h"

namespace statepool::fuzz {
namespace {

std::string Sealed(absl::string_view key, absl::string_view body) {
  const uint64_t sum = XXH3_64bits_withSeed(body.data(), body.size(), XXH3_64bits(key.data(), key.size()));
  std::string value(body);
  value.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
  return value;
}

void Run(Input* input) {
  const uint8_t what = input->Byte();
  const bool sealed = (what & 0x80) == 0;  // else as it is
  const auto value_under = [&](absl::string_view key) {
    const absl::string_view body = input->Rest();
    return sealed ? Sealed(key, body) : std::string(body);
  };
  switch ((what & 0x7f) % 7) {
    case 0: {
      const std::string key(input->Rest());
      if (const auto name = DecodeNameKey(key))
        Require(EncodeNameKey(*name) == key, "a name's key is not itself again");
      if (const auto id = DecodeImageKey(key))
        Require(EncodeImageKey(*id) == key, "an image's key is not itself again");
      break;
    }
    case 1: {
      std::string key = EncodeNameKey({kDefaultTenant, static_cast<NameKind>(1 + input->Pick(3)), "a"});
      if (input->Rarely(16)) key.resize(input->Pick(8));
      const std::string value = value_under(key);
      if (const auto record = DecodeNameRecord(key, value)) {
        Require(EncodeNameRecord(key, *record) == value, "a name's record is not itself again");
        Require(!record->versions.empty(), "a name's record has no version");
        Require(!DecodeNameRecord(EncodeNameKey({kDefaultTenant, NameKind::kSequence, "b"}), value).has_value(),
                "a name's record is taken under another key");
      }
      break;
    }
    case 2: {
      const std::string key = EncodeLayoutKey(kDefaultTenant, "f");
      const std::string value = value_under(key);
      if (const auto record = DecodeLayoutRecord(key, value))
        Require(EncodeLayoutRecord(key, *record) == value, "a layout's record is not itself again");
      break;
    }
    case 3: {
      const std::string key = EncodeImageKey(7);
      const std::string value = value_under(key);
      if (const auto manifest = DecodeManifest(key, value))
        Require(EncodeManifest(key, *manifest) == value, "a manifest is not itself again");
      break;
    }
    case 4: {
      const std::string value = value_under("k");
      if (const auto meta = DecodeMeta("k", value)) Require(EncodeMeta("k", *meta) == value, "a meta value differs");
      break;
    }
    case 5: {
      const std::string value = value_under("k");
      if (const auto number = DecodeMetaNumber("k", value))
        Require(EncodeMetaNumber("k", *number) == value, "a meta number differs");
      break;
    }
    case 6: {  // reasons for names that are gone, as the last run saved them
      TombstoneTable first, second;
      static_cast<void>(first.Load(input->Rest()));
      static_cast<void>(second.Load(first.Save()));
      Require(second.size() == first.size() && second.prefixes() == first.prefixes(), "tombstones are lost by saving");
      Require(second.Save() == first.Save(), "saved tombstones are not themselves again");
      break;
    }
  }
}

}  // namespace
}  // namespace statepool::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  statepool::fuzz::Input input(data, size);
  statepool::fuzz::Run(&input);
  return 0;
}
