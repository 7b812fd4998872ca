// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Witness: a small file beside the database that tells how far it had come.
//
// RocksDB takes a MANIFEST whose end is missing for one whose last entries were never written, and starts with an older
// state of everything; without CURRENT it starts with nothing. The witness was there when there was more.
#ifndef STATEPOOL_SERVER_TIERS_WITNESS_H_
#define STATEPOOL_SERVER_TIERS_WITNESS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace rocksdb {
class DB;
class Env;
}  // namespace rocksdb

namespace statepool {

// Of the data directory `path`, whose database is in `path`/db. Thread-safe but for concurrent writes.

// Replaces the witness, durably, by what `db` has on disk now. An error leaves the old one, which stays true. May be
// called from a listener of the database.
absl::Status WriteWitness(rocksdb::Env* env, const std::string& path, rocksdb::DB* db, uint64_t epoch);

// Before the database is opened. DATA_LOSS / CORRUPT when it has less than it had. No witness, or a damaged one, proves
// nothing: then this is OK. `epoch`: the least that the database may have, or 0.
absl::Status CheckWitness(rocksdb::Env* env, const std::string& path, uint64_t* epoch);

}  // namespace statepool

#endif  // STATEPOOL_SERVER_TIERS_WITNESS_H_
