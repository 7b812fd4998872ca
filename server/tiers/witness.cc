// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/tiers/witness.h"

#include <rocksdb/db.h>
#include <rocksdb/env.h>

#include <memory>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "kernels/xxh3.h"
#include "server/core/error.h"
#include "spdlog/spdlog.h"

namespace statepool {
namespace {

constexpr char kFile[] = "/WITNESS";
constexpr char kManifestPrefix[] = "MANIFEST-";

std::string Sum(absl::string_view text) {
  return absl::StrCat(absl::Hex(Xxh3(text.data(), text.size()), absl::kZeroPad16));
}

bool ManifestNumber(absl::string_view name, uint64_t* number) {
  return absl::ConsumePrefix(&name, kManifestPrefix) && absl::SimpleAtoi(name, number);
}

absl::Status WentBack(const std::string& path, absl::string_view what) {
  return Error(
      absl::StatusCode::kDataLoss, "CORRUPT",
      absl::StrCat(
          "the database of ", path, " has lost what it had on disk: ", what,
          "; bring the whole directory back from a copy, or remove its file WITNESS to go on with what is left"));
}

}  // namespace

absl::Status WriteWitness(rocksdb::Env* env, const std::string& path, rocksdb::DB* db, uint64_t epoch) {
  std::vector<std::string> files;
  uint64_t manifest_bytes = 0, manifest = 0;
  rocksdb::Status status = db->GetLiveFiles(files, &manifest_bytes, /*flush_memtable=*/false);
  if (!status.ok()) return absl::UnavailableError(status.ToString());
  for (absl::string_view file : files) {
    absl::ConsumePrefix(&file, "/");
    ManifestNumber(file, &manifest);
  }
  std::string text = absl::StrCat("manifest ", manifest, " bytes ", manifest_bytes, " epoch ", epoch, " ");
  absl::StrAppend(&text, Sum(text), "\n");
  const std::string made = absl::StrCat(path, kFile, ".new");
  status = rocksdb::WriteStringToFile(env, text, made, /*should_sync=*/true);
  if (status.ok()) status = env->RenameFile(made, path + kFile);
  std::unique_ptr<rocksdb::Directory> directory;
  if (status.ok()) status = env->NewDirectory(path, &directory);
  if (status.ok()) status = directory->Fsync();
  return status.ok() ? absl::OkStatus() : absl::UnavailableError(status.ToString());
}

absl::Status CheckWitness(rocksdb::Env* env, const std::string& path, uint64_t* epoch) {
  *epoch = 0;
  std::string text;
  if (rocksdb::Status status = rocksdb::ReadFileToString(env, path + kFile, &text); !status.ok()) {
    if (!status.IsNotFound() && !status.IsPathNotFound()) spdlog::warn("{}{}: {}", path, kFile, status.ToString());
    return absl::OkStatus();
  }
  const std::vector<std::string> words = absl::StrSplit(absl::StripSuffix(text, "\n"), ' ');
  uint64_t manifest = 0, bytes = 0, least_epoch = 0;
  if (words.size() != 7 || text.size() < words[6].size() + 1 ||
      words[6] != Sum(absl::string_view(text).substr(0, text.size() - words[6].size() - 1)) ||
      !absl::SimpleAtoi(words[1], &manifest) || !absl::SimpleAtoi(words[3], &bytes) ||
      !absl::SimpleAtoi(words[5], &least_epoch)) {
    spdlog::warn("{}{} is damaged, and replaced", path, kFile);
    return absl::OkStatus();
  }
  *epoch = least_epoch;

  std::string current;
  if (rocksdb::Status status = rocksdb::ReadFileToString(env, path + "/db/CURRENT", &current); !status.ok()) {
    return WentBack(path, absl::StrCat("CURRENT: ", status.ToString()));
  }
  uint64_t number = 0, size = 0;
  if (!ManifestNumber(absl::StripSuffix(current, "\n"), &number) || number < manifest)
    return WentBack(path, "CURRENT names an older manifest");
  if (number > manifest) return absl::OkStatus();  // a start wrote it, and did not get as far as the witness
  const rocksdb::Status status = env->GetFileSize(absl::StrCat(path, "/db/", absl::StripSuffix(current, "\n")), &size);
  if (!status.ok()) return WentBack(path, status.ToString());
  if (size < bytes) return WentBack(path, absl::StrCat("its manifest has ", size, " bytes of ", bytes));
  return absl::OkStatus();
}

}  // namespace statepool
