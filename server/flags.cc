// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/flags.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/types/span.h"

using statepool::ByteSize;

ABSL_FLAG(std::vector<std::string>, listen, {"127.0.0.1:7070"},
          "addresses to serve on, with commas between them: host:port (port 0 picks a free one), unix:PATH. There is "
          "no authentication "
          "yet: keep to loopback, a Unix socket or a network that you trust");
ABSL_FLAG(std::string, metrics, "127.0.0.1:9090",
          "host:port of the Prometheus endpoint /metrics (port 0 picks a free one); empty: none");
ABSL_FLAG(std::string, data_dir, "", "directory of everything durable; made if its parent exists. Required");
ABSL_FLAG(
    std::string, devices, "host",
    "where hot states live: host; cuda, the first GPU; cuda:UUID,UUID,..., those GPUs (nvidia-smi -L lists them), at "
    "most 16; far, for tests: host memory that is treated as a GPU's, far,far as two of them");
ABSL_FLAG(ByteSize, hot_bytes, ByteSize{uint64_t{1} << 30}, "budget of hot states, on each device");
ABSL_FLAG(
    ByteSize, warm_bytes, ByteSize{0},
    "budget of pinned host memory below GPU devices: states go there before the disk, and come back from there. It is "
    "pinned when it is first used. Not used with --devices=host");
ABSL_FLAG(ByteSize, staging_bytes, ByteSize{uint64_t{128} << 20},
          "pinned host memory through which states go to and from a GPU, 16 MiB for each at a time; not of any budget");
ABSL_FLAG(ByteSize, cold_bytes, ByteSize{uint64_t{64} << 30}, "budget of states in the data directory");
ABSL_FLAG(ByteSize, chunk_bytes, ByteSize{0},
          "unit in which pools take memory from the hot budget: a power of two; 0 picks one");
ABSL_FLAG(ByteSize, max_message_bytes, ByteSize{uint64_t{512} << 20},
          "largest state in one message; the transport takes 2 MiB more, for its attachment and other fields");
ABSL_FLAG(ByteSize, max_bytes_in_flight, ByteSize{uint64_t{1} << 30},
          "bytes of states in calls that are running; further calls get RESOURCE_EXHAUSTED and a hint when to retry");
ABSL_FLAG(uint32_t, max_uploads, 64, "SetStreams that go on, or broke off and are kept, at a time");
ABSL_FLAG(ByteSize, max_upload_bytes, ByteSize{0},
          "of the states of all uploads; one alone may be larger; 0: seven eighths of the hot budget");
ABSL_FLAG(absl::Duration, upload_timeout, absl::Seconds(60), "how long a broken-off SetStream is kept");
ABSL_FLAG(absl::Duration, stream_timeout, absl::Seconds(30),
          "a stream without progress for so long is ended; so is a call whose answer is not taken, after a second more "
          "for each MiB of it");
ABSL_FLAG(std::string, arena_socket, "auto",
          "Unix socket over which workers of this machine get their arenas: a path; @NAME or auto: a name in Linux's "
          "abstract namespace, for workers in the same network namespace; empty: no arenas");
ABSL_FLAG(std::vector<std::string>, arena_uids, {},
          "numbers of users, with commas between them, that may have arenas besides root and the daemon's own");
ABSL_FLAG(uint32_t, max_arenas, 1024, "arenas at a time, those counted that a worker closed and still maps");
ABSL_FLAG(ByteSize, max_arena_bytes, ByteSize{0},
          "of the hot budget of each device, for its arenas and the slots reserved for them; 0: three quarters");
ABSL_FLAG(absl::Duration, arena_token_timeout, absl::Seconds(1),
          "how long a worker may take from OpenArena's answer to its connection");
ABSL_FLAG(
    bool, direct, false,
    "workers may map their tenant's slots, and copy themselves: for workers that trust each other; with one device");
ABSL_FLAG(ByteSize, max_pinned_bytes, ByteSize{0},
          "of the hot budget, that workers may keep in their places with --direct; 0: half");
ABSL_FLAG(ByteSize, max_granted_bytes, ByteSize{0},
          "of the hot budget, that workers may write to with --direct; 0: a quarter");
ABSL_FLAG(uint32_t, copy_threads, 0, "threads that copy between slots and arenas; 0: one a core, at most 8");
ABSL_FLAG(uint64_t, max_names, 10'000'000, "sequences, snapshots and prefixes together");
ABSL_FLAG(std::string, default_durability, "write-behind", "of names that do not say: volatile, write-behind or sync");
ABSL_FLAG(absl::Duration, default_ttl, absl::InfiniteDuration(),
          "idle time to live of names that do not say; inf: forever");
ABSL_FLAG(absl::Duration, max_ttl, absl::Hours(24 * 365),
          "longest ttl, and farthest expire_time, that a name may ask for");
ABSL_FLAG(absl::Duration, flush_interval, absl::Seconds(1),
          "a WRITE_BEHIND change is recorded on disk about this long after its answer");
ABSL_FLAG(ByteSize, max_dirty_bytes, ByteSize{0},
          "states of WRITE_BEHIND names that may wait to be recorded; 0: three quarters of all budgets but the cold "
          "one. Never more "
          "than the disk takes in --drain-grace. Further writes get RESOURCE_EXHAUSTED and a hint when to retry");
ABSL_FLAG(ByteSize, flush_bytes_per_second, ByteSize{0},
          "what is recorded in the background, while less than half of --max-dirty-bytes waits; 0: as fast as the disk "
          "is");
ABSL_FLAG(absl::Duration, max_lag, absl::ZeroDuration(),
          "how long a WRITE_BEHIND change may wait to be recorded before --lag-policy is asked; 0: 30s, or three times "
          "--flush-interval if that is longer");
ABSL_FLAG(std::string, lag_policy, "degrade",
          "when a change waits longer than --max-lag: degrade (go on, the lag shows) or throttle (WRITE_BEHIND writes "
          "get RESOURCE_EXHAUSTED and a hint when to retry)");
ABSL_FLAG(absl::Duration, drain_grace, absl::Seconds(30),
          "how long running calls may go on after SIGTERM before they are cancelled");
ABSL_FLAG(uint32_t, executor_threads, 32, "threads for calls that may wait for memory or disk");
ABSL_FLAG(uint32_t, executor_queue, 4096, "calls that may wait for such a thread; further ones get RESOURCE_EXHAUSTED");
ABSL_FLAG(std::string, log_level, "info", "trace, debug, info, warn, error or off");

namespace statepool {
namespace {

constexpr absl::string_view kEnvironmentPrefix = "STATEPOOL_";
constexpr absl::string_view kFlagfile = "flagfile";
constexpr int kFlagfileDepthMax = 8;
constexpr size_t kDevicesMax = 16;  // ResidencyMemories::kMaxHot
constexpr absl::Duration kMaxLag = absl::Seconds(30);
// gRPC's limits are ints, and so are those of protobuf. Room for 2 MiB beside the state.
constexpr uint64_t kMessageBytesMax = (uint64_t{2} << 30) - (4 << 20);

struct Unit {
  absl::string_view suffix;
  uint64_t bytes;
};
constexpr Unit kUnits[] = {{"KiB", uint64_t{1} << 10},
                           {"MiB", uint64_t{1} << 20},
                           {"GiB", uint64_t{1} << 30},
                           {"TiB", uint64_t{1} << 40},
                           {"kB", 1'000},
                           {"KB", 1'000},
                           {"MB", 1'000'000},
                           {"GB", 1'000'000'000},
                           {"TB", 1'000'000'000'000}};

absl::Status Bad(absl::string_view flag, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", why));
}

// The daemon's own flags, those of this file.
std::vector<absl::CommandLineFlag*> OwnFlags() {
  std::vector<absl::CommandLineFlag*> flags;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (absl::EndsWith(flag->Filename(), "server/flags.cc")) flags.push_back(flag);
  }
  std::sort(flags.begin(), flags.end(), [](const auto* a, const auto* b) { return a->Name() < b->Name(); });
  return flags;
}

void PrintHelp() {
  std::cout << "statepoold: keeps the recurrent states of sequence models where inference workers can share them.\n\n"
               "  statepoold --data-dir=DIR [--FLAG=VALUE ...]\n\n"
               "Flags also come from --flagfile=FILE (one a line), and from the environment as STATEPOOL_<FLAG>.\n\n";
  for (const absl::CommandLineFlag* flag : OwnFlags()) {
    std::cout << "  --" << absl::StrReplaceAll(flag->Name(), {{"_", "-"}}) << " (" << flag->DefaultValue()
              << ")\n      " << flag->Help() << "\n";
  }
  std::cout << std::flush;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream content;
  if (!file || !(content << file.rdbuf()))
    return absl::InvalidArgumentError(absl::StrCat("cannot read the flagfile ", path));
  return content.str();
}

bool IsBool(const std::string& name) {
  const absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
  return flag != nullptr && flag->IsOfType<bool>();
}

// Splits "--name=value" and writes the name with underscores. False: this is no flag.
bool TakeFlag(absl::string_view argument, std::string* name, std::optional<std::string>* value) {
  if (!absl::ConsumePrefix(&argument, "--") && !absl::ConsumePrefix(&argument, "-")) return false;
  const size_t equals = argument.find('=');
  *name = absl::StrReplaceAll(argument.substr(0, equals), {{"-", "_"}});
  *value = equals == absl::string_view::npos ? std::nullopt : std::optional<std::string>(argument.substr(equals + 1));
  return !name->empty();
}

class Expander {
 public:
  Expander(const std::vector<std::string>& names,
           const std::function<absl::StatusOr<std::string>(const std::string&)>& read_file)
      : names_(names), read_file_(read_file) {}

  absl::Status Add(const std::vector<std::string>& arguments, int depth) {
    for (size_t i = 0; i < arguments.size(); ++i) {
      std::string name;
      std::optional<std::string> value;
      if (arguments[i] == "--" || !TakeFlag(arguments[i], &name, &value)) {
        out_.insert(out_.end(), arguments.begin() + i, arguments.end());  // no flags any more
        return absl::OkStatus();
      }
      const bool takes_value = name == kFlagfile || std::find(names_.begin(), names_.end(), name) != names_.end();
      // --name value, but for a bool, which needs none.
      if (takes_value && !IsBool(name) && !value.has_value() && i + 1 < arguments.size()) value = arguments[++i];
      if (name == kFlagfile) {
        if (absl::Status s = AddFile(value.value_or(""), depth); !s.ok()) return s;
      } else {
        out_.push_back(value.has_value() ? absl::StrCat("--", name, "=", *value) : absl::StrCat("--", name));
      }
    }
    return absl::OkStatus();
  }

  absl::Status AddFile(const std::string& path, int depth) {
    if (depth >= kFlagfileDepthMax)
      return absl::InvalidArgumentError(absl::StrCat("too many flagfiles within each other: ", path));
    const absl::StatusOr<std::string> content = read_file_(path);
    if (!content.ok()) return content.status();
    std::vector<std::string> lines;
    for (absl::string_view line : absl::StrSplit(*content, '\n')) {
      line = absl::StripAsciiWhitespace(line);
      if (line.empty() || line[0] == '#') continue;
      std::string name;
      std::optional<std::string> value;
      if (!TakeFlag(line, &name, &value) || (!value.has_value() && absl::StrContains(name, ' '))) {
        return absl::InvalidArgumentError(absl::StrCat(path, ": this is no flag: '", line, "'; write --name=value"));
      }
      lines.emplace_back(line);
    }
    // Each line is whole, so it can't take the next one for its value.
    for (const std::string& line : lines) {
      if (absl::Status s = Add({line}, depth + 1); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  std::vector<std::string> Take() { return std::move(out_); }

 private:
  const std::vector<std::string>& names_;
  const std::function<absl::StatusOr<std::string>(const std::string&)>& read_file_;
  std::vector<std::string> out_;
};

absl::StatusOr<std::vector<std::string>> ParseDevices(absl::string_view text) {
  std::vector<std::string> devices = absl::StrSplit(text, ',');
  const bool gpus = absl::StartsWith(devices.front(), "cuda:");
  for (size_t i = 0; i < devices.size(); ++i) {
    std::string& device = devices[i];
    if (gpus && !absl::StartsWith(device, "cuda:")) device = absl::StrCat("cuda:", device);
    const bool is_one = gpus ? device != "cuda:" : device == "host" || device == "far" || device == "cuda";
    if (!is_one)
      return Bad("devices", absl::StrCat("'", device, "' is no device; use host, cuda or cuda:UUID,UUID,..."));
    if (i == 0 || (device == "far" && devices.front() == "far")) continue;
    if (!gpus) return Bad("devices", "several are GPUs by their UUIDs: cuda:UUID,UUID,...");
    if (absl::c_linear_search(absl::MakeConstSpan(devices).first(i), device))
      return Bad("devices", absl::StrCat(device, " is named twice"));
  }
  if (devices.size() > kDevicesMax) return Bad("devices", absl::StrCat("at most ", kDevicesMax));
  return devices;
}

absl::StatusOr<DaemonFlags> CheckFlags() {
  DaemonFlags flags;
  for (const std::string& address : absl::GetFlag(FLAGS_listen)) {
    if (!address.empty()) flags.listen.push_back(address);
  }
  if (flags.listen.empty()) return Bad("listen", "give at least one address");
  flags.metrics = absl::GetFlag(FLAGS_metrics);
  flags.data_dir = absl::GetFlag(FLAGS_data_dir);
  if (flags.data_dir.empty()) return Bad("data-dir", "give the directory to keep states in; there is no default");

  absl::StatusOr<std::vector<std::string>> devices = ParseDevices(absl::GetFlag(FLAGS_devices));
  if (!devices.ok()) return devices.status();
  flags.devices = *std::move(devices);
  flags.hot_bytes = absl::GetFlag(FLAGS_hot_bytes).bytes;
  flags.warm_bytes = absl::GetFlag(FLAGS_warm_bytes).bytes;
  flags.staging_bytes = absl::GetFlag(FLAGS_staging_bytes).bytes;
  flags.cold_bytes = absl::GetFlag(FLAGS_cold_bytes).bytes;
  flags.chunk_bytes = absl::GetFlag(FLAGS_chunk_bytes).bytes;
  if (flags.hot_bytes == 0) return Bad("hot-bytes", "must be more than 0");
  if (flags.cold_bytes == 0) return Bad("cold-bytes", "must be more than 0");
  flags.max_message_bytes = absl::GetFlag(FLAGS_max_message_bytes).bytes;
  if (flags.max_message_bytes == 0 || flags.max_message_bytes > kMessageBytesMax) {
    return Bad("max-message-bytes", absl::StrCat("must be 1..", kMessageBytesMax));
  }
  flags.max_bytes_in_flight = absl::GetFlag(FLAGS_max_bytes_in_flight).bytes;
  if (flags.max_bytes_in_flight == 0) return Bad("max-bytes-in-flight", "must be more than 0");
  flags.max_uploads = absl::GetFlag(FLAGS_max_uploads);
  flags.max_upload_bytes = absl::GetFlag(FLAGS_max_upload_bytes).bytes;
  if (flags.max_upload_bytes == 0) flags.max_upload_bytes = flags.hot_bytes / 8 * 7;
  flags.upload_timeout = absl::GetFlag(FLAGS_upload_timeout);
  flags.stream_timeout = absl::GetFlag(FLAGS_stream_timeout);
  if (flags.upload_timeout < absl::ZeroDuration() || flags.upload_timeout > absl::Hours(24)) {
    return Bad("upload-timeout", "must be 0..24h");
  }
  if (flags.stream_timeout <= absl::ZeroDuration() || flags.stream_timeout > absl::Hours(24)) {
    return Bad("stream-timeout", "must be more than 0 and at most 24h");
  }
  flags.arena_socket = absl::GetFlag(FLAGS_arena_socket);
  for (const std::string& text : absl::GetFlag(FLAGS_arena_uids)) {
    uint32_t uid;
    if (text.empty()) continue;
    if (!absl::SimpleAtoi(text, &uid)) return Bad("arena-uids", absl::StrCat("'", text, "' is no user's number"));
    flags.arena_uids.push_back(uid);
  }
  flags.max_arenas = absl::GetFlag(FLAGS_max_arenas);
  if (flags.max_arenas < 1 || flags.max_arenas > 10'000) return Bad("max-arenas", "must be 1..10000");
  flags.max_arena_bytes = absl::GetFlag(FLAGS_max_arena_bytes).bytes;
  if (flags.max_arena_bytes == 0) flags.max_arena_bytes = flags.hot_bytes / 4 * 3;
  if (flags.max_arena_bytes > flags.hot_bytes) return Bad("max-arena-bytes", "must be at most --hot-bytes, or 0");
  flags.direct = absl::GetFlag(FLAGS_direct);
  if (flags.direct && flags.arena_socket.empty()) return Bad("direct", "needs an --arena-socket");
  if (flags.direct && flags.devices.size() > 1)
    return Bad("direct", "a lease has slots of one device only in this version; name one in --devices");
  flags.max_pinned_bytes = absl::GetFlag(FLAGS_max_pinned_bytes).bytes;
  if (flags.max_pinned_bytes == 0) flags.max_pinned_bytes = flags.hot_bytes / 2;
  if (flags.max_pinned_bytes > flags.hot_bytes) return Bad("max-pinned-bytes", "must be at most --hot-bytes, or 0");
  flags.max_granted_bytes = absl::GetFlag(FLAGS_max_granted_bytes).bytes;
  if (flags.max_granted_bytes == 0) flags.max_granted_bytes = flags.hot_bytes / 4;
  if (flags.max_granted_bytes > flags.hot_bytes) return Bad("max-granted-bytes", "must be at most --hot-bytes, or 0");
  flags.arena_token_timeout = absl::GetFlag(FLAGS_arena_token_timeout);
  if (flags.arena_token_timeout <= absl::ZeroDuration() || flags.arena_token_timeout > absl::Hours(1)) {
    return Bad("arena-token-timeout", "must be more than 0 and at most 1h");
  }
  flags.copy_threads = absl::GetFlag(FLAGS_copy_threads);
  if (flags.copy_threads > 256) return Bad("copy-threads", "must be 0..256");
  if (flags.copy_threads == 0) flags.copy_threads = std::min(8u, std::max(1u, std::thread::hardware_concurrency()));
  flags.max_names = absl::GetFlag(FLAGS_max_names);
  if (flags.max_names == 0) return Bad("max-names", "must be more than 0");

  const std::string durability = absl::GetFlag(FLAGS_default_durability);
  if (durability == "volatile") {
    flags.default_durability = Durability::kVolatile;
  } else if (durability == "write-behind") {
    flags.default_durability = Durability::kWriteBehind;
  } else if (durability == "sync") {
    flags.default_durability = Durability::kSync;
  } else {
    return Bad("default-durability", absl::StrCat("'", durability, "' is none of volatile, write-behind, sync"));
  }
  flags.default_ttl = absl::GetFlag(FLAGS_default_ttl);
  flags.max_ttl = absl::GetFlag(FLAGS_max_ttl);
  if (flags.max_ttl <= absl::ZeroDuration()) return Bad("max-ttl", "must be more than 0");
  if (flags.default_ttl <= absl::ZeroDuration() ||
      (flags.default_ttl != absl::InfiniteDuration() && flags.default_ttl > flags.max_ttl)) {
    return Bad("default-ttl", "must be more than 0 and at most --max-ttl, or inf");
  }
  flags.flush_interval = absl::GetFlag(FLAGS_flush_interval);
  if (flags.flush_interval <= absl::ZeroDuration() || flags.flush_interval > absl::Hours(24)) {
    return Bad("flush-interval", "must be more than 0 and at most 24h");
  }
  flags.max_dirty_bytes = absl::GetFlag(FLAGS_max_dirty_bytes).bytes;
  const uint64_t warm_bytes = flags.devices.front() == "host" ? 0 : flags.warm_bytes;
  if (flags.max_dirty_bytes == 0) flags.max_dirty_bytes = (flags.hot_bytes * flags.devices.size() + warm_bytes) / 4 * 3;
  if (const uint64_t rate = absl::GetFlag(FLAGS_flush_bytes_per_second).bytes; rate != 0)
    flags.flush_bytes_per_second = rate;
  flags.max_lag = absl::GetFlag(FLAGS_max_lag);
  if (flags.max_lag == absl::ZeroDuration()) flags.max_lag = std::max(kMaxLag, 3 * flags.flush_interval);
  if (flags.max_lag < flags.flush_interval || flags.max_lag > absl::Hours(24 * 7)) {
    return Bad("max-lag", "must be at least --flush-interval and at most 168h, or 0");
  }
  const std::string lag_policy = absl::GetFlag(FLAGS_lag_policy);
  if (lag_policy != "degrade" && lag_policy != "throttle") {
    return Bad("lag-policy", absl::StrCat("'", lag_policy, "' is neither degrade nor throttle"));
  }
  flags.lag_policy = lag_policy == "throttle" ? LagPolicy::kThrottle : LagPolicy::kDegrade;
  flags.drain_grace = absl::GetFlag(FLAGS_drain_grace);
  if (flags.drain_grace < absl::ZeroDuration() || flags.drain_grace > absl::Hours(24)) {
    return Bad("drain-grace", "must be 0..24h");
  }
  flags.executor_threads = absl::GetFlag(FLAGS_executor_threads);
  if (flags.executor_threads < 1 || flags.executor_threads > 1024) return Bad("executor-threads", "must be 1..1024");
  flags.executor_queue = absl::GetFlag(FLAGS_executor_queue);
  if (flags.executor_queue > 1'000'000) return Bad("executor-queue", "must be 0..1000000");
  flags.log_level = absl::GetFlag(FLAGS_log_level);
  return flags;
}

}  // namespace

bool AbslParseFlag(absl::string_view text, ByteSize* size, std::string* error) {
  uint64_t unit = 1;
  for (const Unit& u : kUnits) {
    if (absl::ConsumeSuffix(&text, u.suffix)) {
      unit = u.bytes;
      break;
    }
  }
  text = absl::StripTrailingAsciiWhitespace(text);
  uint64_t count;
  if (text.empty() || !absl::ascii_isdigit(text[0]) || !absl::SimpleAtoi(text, &count)) {
    *error = "not a size; write bytes, or a whole number with KiB, MiB, GiB, TiB, kB, MB, GB or TB, as 8GiB";
    return false;
  }
  if (count > UINT64_MAX / unit) {
    *error = "larger than 2^64 bytes";
    return false;
  }
  size->bytes = count * unit;
  return true;
}

std::string AbslUnparseFlag(const ByteSize& size) {
  for (auto unit = std::rbegin(kUnits); unit != std::rend(kUnits); ++unit) {
    if (absl::EndsWith(unit->suffix, "iB") && size.bytes != 0 && size.bytes % unit->bytes == 0) {
      return absl::StrCat(size.bytes / unit->bytes, unit->suffix);
    }
  }
  return absl::StrCat(size.bytes);
}

absl::StatusOr<std::vector<std::string>> ExpandArguments(
    const std::vector<std::string>& arguments, const std::vector<std::string>& names,
    const std::function<std::optional<std::string>(const std::string&)>& environment,
    const std::function<absl::StatusOr<std::string>(const std::string&)>& read_file) {
  Expander expander(names, read_file);
  std::vector<std::string> variables(names);
  variables.insert(variables.begin(), std::string(kFlagfile));
  for (const std::string& name : variables) {
    const std::optional<std::string> value = environment(absl::StrCat(kEnvironmentPrefix, absl::AsciiStrToUpper(name)));
    if (!value.has_value()) continue;
    if (absl::Status s = expander.Add({absl::StrCat("--", name, "=", *value)}, 0); !s.ok()) return s;
  }
  if (absl::Status s = expander.Add(arguments, 0); !s.ok()) return s;
  return expander.Take();
}

absl::StatusOr<DaemonFlags> ParseDaemonFlags(int argc, char** argv, absl::string_view version) {
  std::vector<std::string> names;
  for (const absl::CommandLineFlag* flag : OwnFlags()) names.emplace_back(flag->Name());
  const absl::StatusOr<std::vector<std::string>> arguments = ExpandArguments(
      std::vector<std::string>(argv + 1, argv + argc), names,
      [](const std::string& variable) -> std::optional<std::string> {
        const char* value = std::getenv(variable.c_str());
        return value == nullptr ? std::nullopt : std::optional<std::string>(value);
      },
      ReadFile);
  if (!arguments.ok()) return arguments.status();
  for (const std::string& argument : *arguments) {
    if (argument == "--help") {
      PrintHelp();
      std::exit(0);
    }
    if (argument == "--version") {
      std::cout << "statepoold " << version << std::endl;
      std::exit(0);
    }
  }

  std::vector<char*> pointers = {argv[0]};
  for (const std::string& argument : *arguments) pointers.push_back(const_cast<char*>(argument.c_str()));
  const std::vector<char*> rest = absl::ParseCommandLine(static_cast<int>(pointers.size()), pointers.data());
  if (rest.size() > 1)
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument '", rest[1], "'; flags begin with --"));
  return CheckFlags();
}

}  // namespace statepool
