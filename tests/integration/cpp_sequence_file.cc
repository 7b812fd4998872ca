// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// cpp_sequence_file LAYOUT NAME N_LAYER: reads llama.cpp's files of a sequence with client/cpp/engines/sequence_file.h,
// puts what they hold into the daemon at $STATEPOOL_SERVER (if it is set) as NAME, gets it and writes it again.
// test_ggsq.py compares the bytes, and the errors with those of the Python package.
//
// LAYOUT is a file with a serialized Layout. Each line of stdin is the path of a file, a tab, and where to write it;
// for each a line comes out: "OK" and the position, or the reason, the field and the message, between tabs.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "client/cpp/engines/sequence_file.h"
#include "client/cpp/errors.h"
#include "client/cpp/statepool.h"

namespace statepool::engines {
namespace {

absl::StatusOr<int64_t> Convert(const std::optional<client::Pool>& pool, const v1::Layout& layout,
                                const std::string& name, uint32_t n_layer, const std::string& from,
                                const std::string& to) {
  const absl::StatusOr<SequenceFile> file = ReadSequenceFile(from, layout, n_layer);
  if (!file.ok()) return file.status();
  if (!pool.has_value()) {
    // In pieces of odd sizes, as a transport may have cut them.
    std::vector<absl::string_view> pieces;
    for (absl::string_view left = file->data; !left.empty(); left.remove_prefix(pieces.back().size()))
      pieces.push_back(left.substr(0, 7));
    const absl::Status written = WriteSequenceFile(to, layout, pieces, file->tokens, file->options);
    if (!written.ok()) return written;
    return file->position;
  }
  const auto info = pool->RegisterLayout(layout);
  if (!info.ok()) return info.status();
  const auto set = pool->Set(name, info->fingerprint(), file->position, file->data);
  if (!set.ok()) return set.status();
  const auto published = pool->PublishPrefix(info->fingerprint(), file->tokens, client::SequenceRef(name));
  if (!published.ok()) return published.status();
  const auto state = pool->Get(client::SequenceRef(name));
  if (!state.ok()) return state.status();
  const absl::Status written = WriteSequenceFile(to, layout, state->pieces(), file->tokens, file->options);
  if (!written.ok()) return written;
  return state->info().position();
}

int Main(const std::string& layout_path, const std::string& name, uint32_t n_layer) {
  v1::Layout layout;
  std::ifstream layout_file(layout_path, std::ios::binary);
  if (!layout.ParseFromIstream(&layout_file)) return 2;
  std::optional<client::Pool> pool;
  if (const char* const server = std::getenv("STATEPOOL_SERVER"); server != nullptr) {
    auto connected = client::Pool::Connect(server);
    if (!connected.ok()) return 2;
    pool.emplace(*std::move(connected));
  }
  for (std::string line; std::getline(std::cin, line);) {
    const size_t tab = line.find('\t');
    if (tab == std::string::npos) return 2;
    const auto position = Convert(pool, layout, name, n_layer, line.substr(0, tab), line.substr(tab + 1));
    const client::ErrorDetail error = client::GetErrorDetail(position.status());
    if (position.ok()) {
      std::cout << "OK\t" << *position << std::endl;
    } else {
      std::cout << error.reason << '\t' << error.field << '\t' << error.message << std::endl;
    }
  }
  return 0;
}

}  // namespace
}  // namespace statepool::engines

int main(int argc, char** argv) {
  uint32_t n_layer = 0;
  if (argc != 4 || !absl::SimpleAtoi(argv[3], &n_layer)) return 2;
  return statepool::engines::Main(argv[1], argv[2], n_layer);
}
