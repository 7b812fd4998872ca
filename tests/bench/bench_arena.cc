// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// Figures `arena_*`: Load and Store of 1, 16 and 64 rows of an arena, beside memcpy of as many bytes.
//
//   statepool_bench_arena --server=ADDRESS --threads=N --seed=N --max-rows=N --rounds=N --milliseconds=N
//
// Layouts of LFM2 1.2B (its short convolutions, 0.08 MB), RWKV-7 2.9B (21 MB) and Mamba-2.8b (23 MB), as they are: a
// tensor for each layer, the layout's axes. What is measured is what a user of our C++ client gets: Arena::Load and
// Arena::Store, one call at a time. Names are VOLATILE, so that no disk is in the way; Store takes the hashes too.
//
// The baseline: `threads` threads (as many as the daemon copies with) that memcpy states between buffers of this
// process, in pieces of 1 MiB that go to whoever is free (of small states: of an equal part each); from the first
// thread's start to the last one's end.
//
// Nothing lies in a cache: an arena has rows, and there are states and buffers, for far more than caches hold, and
// they have their turns. Every row's version is another one's. A round loads rows, writes to them and stores them as
// new versions of the same sequences, each call followed by the baseline. Which sequence a row gets changes from turn
// to turn, so that a row that was not loaded has the wrong bytes.
//
// Every kCheckEvery-th round is not timed: the bytes of all its rows are hashed here, and must have the checksum that
// the Store of that version told, and that Store in turn that of what lay in the row.
//
// `value` is of the whole call, as is `ratio`. `copy_ratio` is the same for the time that the daemon spent copying
// (copy_time); `rpc_share` is what else the call took. `goal_of` says which of the two is judged: the call where there
// is so much to copy that it should not matter (16 rows of 20 MB), else the copy.
#include <sys/mman.h>

#include <atomic>

#include "absl/time/time.h"
#include "client/cpp/arena.h"
#include "client/cpp/statepool.h"
#include "tests/bench/measure.h"

namespace statepool::bench {
namespace {

using client::Arena;

constexpr uint32_t kRows[] = {1, 16, 64};
constexpr uint64_t kColdBytes = 160 << 20;    // at least so many in the rows of an arena
constexpr uint64_t kBufferBytes = 512 << 20;  // of the baseline's sources, and of what it copies them to, at most
constexpr uint64_t kPieceBytes = 1 << 20;
constexpr uint64_t kLargeBytes = 300'000'000;
constexpr uint64_t kCheckEvery = 8;
constexpr double kGoal = 0.8;
constexpr double kGbPerS = 1e-3;  // of bytes a microsecond

template <typename Answer>
Answer Must(absl::StatusOr<Answer> answer, absl::string_view what) {
  if (!answer.ok()) NotMeasurable(absl::StrCat(what, ": ", answer.status().ToString()));
  return *std::move(answer);
}

// Memory of this process, all of its pages there.
class Buffer {
 public:
  explicit Buffer(uint64_t bytes) : bytes_(bytes) {
    void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (data == MAP_FAILED) NotMeasurable("no memory for the baseline");
    data_ = static_cast<char*>(data);
  }
  ~Buffer() { munmap(data_, bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* data() const { return data_; }
  uint64_t size() const { return bytes_; }

 private:
  const uint64_t bytes_;
  char* data_;
};

// The same bytes, copied without us.
class Memcpy {
 public:
  Memcpy(size_t threads, uint64_t state_bytes, uint64_t states, uint64_t seed)
      : threads_(threads),
        state_bytes_(state_bytes),
        states_(std::min(states, kBufferBytes / state_bytes)),
        from_(states_ * state_bytes),
        to_(states_ * state_bytes),
        crew_(threads) {
    FillRandom(&seed, absl::MakeSpan(from_.data(), from_.size()));
    FillRandom(&seed, absl::MakeSpan(to_.data(), to_.size()));
  }

  // Microseconds for the next `n` states.
  double Copy(uint64_t n) {
    const uint64_t first = next_;
    next_ = (next_ + n) % states_;
    const uint64_t piece = std::min<uint64_t>(kPieceBytes, (state_bytes_ + threads_ - 1) / threads_);
    const uint64_t pieces = (state_bytes_ + piece - 1) / piece;  // of a state
    std::atomic<uint64_t> taken{0};
    return crew_.All([&](size_t) {
      for (uint64_t i; (i = taken.fetch_add(1, std::memory_order_relaxed)) < n * pieces;) {
        const uint64_t begin = i % pieces * piece;
        const uint64_t at = (first + i / pieces) % states_ * state_bytes_ + begin;
        std::memcpy(to_.data() + at, from_.data() + at, std::min(piece, state_bytes_ - begin));
      }
    });
  }

 private:
  const size_t threads_;
  const uint64_t state_bytes_, states_;
  const Buffer from_, to_;
  Crew crew_;
  uint64_t next_ = 0;
};

struct Model {
  const char* label;
  v1::RegisterLayoutRequest layout;
};

std::vector<Model> Models() {
  std::vector<Model> models(3);
  models[0].label = "0.08MB";
  v1::Layout& lfm2 = *models[0].layout.mutable_layout();
  lfm2.set_model_id("bench/lfm2-1.2b");
  v1::TensorSpec& conv = *lfm2.add_tensors();
  conv.set_name("conv");
  conv.set_kind(v1::CONV);
  conv.set_dtype(v1::BFLOAT16);
  for (const uint32_t layer : {0, 1, 3, 4, 6, 7, 9, 11, 13, 15}) conv.add_layers(layer);
  for (const auto& [name, size] : {std::pair<const char*, uint64_t>{"channel", 2048}, {"tap", 2}}) {
    v1::Axis& axis = *conv.add_axes();
    axis.set_name(name);
    axis.set_size(size);
  }
  models[1].label = "21MB";
  models[1].layout.mutable_preset()->set_model_id("bench/rwkv7-2.9b");
  models[1].layout.mutable_preset()->mutable_rwkv7()->set_layers(32);
  models[1].layout.mutable_preset()->mutable_rwkv7()->set_hidden_size(2560);
  models[2].label = "23MB";
  models[2].layout.mutable_preset()->set_model_id("bench/mamba-2.8b");
  v1::Mamba1Preset& mamba = *models[2].layout.mutable_preset()->mutable_mamba1();
  mamba.set_layers(64);
  mamba.set_intermediate_size(5120);
  mamba.set_state_size(16);
  return models;
}

struct Samples {
  std::vector<double> call_us, copy_us, memcpy_us;
};

class Bench {
 public:
  explicit Bench(const Arguments& arguments)
      : arguments_(arguments),
        threads_(static_cast<size_t>(arguments.Number("threads"))),
        max_rows_(static_cast<uint32_t>(arguments.Number("max-rows"))),
        random_((static_cast<uint64_t>(arguments.Number("seed")) * 0x9e3779b97f4a7c15) | 1),
        pool_(Must(client::Pool::Connect(arguments.Text("server")), "Connect")) {}

  int Run() {
    for (const Model& model : Models()) Measure(model);
    Figure("arena_wrong")
        .Set("value", static_cast<double>(wrong_))
        .Text("unit", "wrong rows")
        .Set("n", static_cast<double>(checked_))
        .Goal("value", 0)
        .Print();
    return 0;
  }

 private:
  struct Sequence {
    std::string name, checksum;
    int64_t position = 0;
  };

  // The row's bytes in the layout's order.
  static std::vector<absl::Span<char>> PiecesOf(const Arena& arena, uint32_t row) {
    std::vector<absl::Span<char>> pieces;
    for (const client::ArenaTensor& tensor : arena.tensors()) {
      if (tensor.axes[0] != "row") NotMeasurable("the arena is not as it was asked for");
      pieces.push_back(
          {static_cast<char*>(tensor.data) + row * tensor.strides[0], tensor.shape[1] * tensor.strides[1]});
    }
    return pieces;
  }
  static std::string ChecksumOfRow(const Arena& arena, uint32_t row) {
    std::vector<absl::string_view> pieces;
    for (const absl::Span<char> piece : PiecesOf(arena, row)) pieces.emplace_back(piece.data(), piece.size());
    return client::ChecksumOfPieces(pieces);
  }
  void Check(bool right) {
    ++checked_;
    if (!right && wrong_++ == 0) std::fprintf(stderr, "arena: wrong\n");
  }

  void Measure(const Model& model) {
    const v1::LayoutInfo layout = Must(pool_.RegisterLayout(model.layout), "RegisterLayout");
    const uint64_t state_bytes = layout.state_bytes();
    uint32_t most = 1;  // in one call
    for (const uint32_t rows : kRows) {
      if (rows <= max_rows_ || state_bytes * rows < kLargeBytes) most = rows;
    }
    // Whole turns of each number of rows.
    const auto turns = static_cast<uint32_t>(std::max<uint64_t>(1, kColdBytes / (state_bytes * most)));
    client::ArenaOptions options;
    options.rows = most * turns;
    const std::unique_ptr<Arena> arena = Must(pool_.OpenArena(layout.fingerprint(), options), "OpenArena");
    std::vector<Sequence> sequences(options.rows);
    for (uint32_t row = 0; row < options.rows; ++row) {
      sequences[row].name = absl::StrCat("arena/", model.label, "/", row);
      for (const absl::Span<char> piece : PiecesOf(*arena, row)) FillRandom(&random_, piece);
    }
    for (uint32_t first = 0; first < options.rows; first += most)
      StoreRows(arena.get(), &sequences, first, most, 0, true);
    Memcpy baseline(threads_, state_bytes, options.rows, random_);
    for (const uint32_t rows : kRows) {
      if (rows <= most) Measure(model, state_bytes, rows, arena.get(), &sequences, &baseline);
    }
    arena->Close();
    v1::DeleteManyRequest all;
    all.set_name_prefix(absl::StrCat("arena/", model.label, "/"));
    Must(pool_.DeleteMany(all), "DeleteMany");
  }

  void Measure(const Model& model, uint64_t state_bytes, uint32_t rows, Arena* arena, std::vector<Sequence>* sequences,
               Memcpy* baseline) {
    const std::string label = absl::StrCat(model.label, "_", rows);
    const double milliseconds = static_cast<double>(arguments_.Number("milliseconds"));
    const auto rounds = static_cast<uint64_t>(arguments_.Number("rounds"));
    const uint32_t turns = arena->rows() / rows;
    Samples load, store;
    for (int attempt = 1; attempt == 1 || !IsStable("memcpy", load.memcpy_us, attempt - 1) ||
                          !IsStable("memcpy", store.memcpy_us, attempt - 1);
         ++attempt) {
      load = store = Samples();
      const Stopwatch watch;
      for (uint64_t round = 0; load.call_us.size() < rounds || watch.microseconds() < milliseconds * 1e3; ++round) {
        const uint32_t first = static_cast<uint32_t>(turn_ % turns) * rows;
        const auto shift = static_cast<uint32_t>(1 + turn_ / turns);
        ++turn_;
        const bool checks = round % kCheckEvery == 0;
        Sample(LoadRows(arena, *sequences, first, rows, shift, checks), rows, baseline, checks ? nullptr : &load);
        for (uint32_t row = first; row < first + rows; ++row) {
          for (const absl::Span<char> piece : PiecesOf(*arena, row)) FillRandom(&random_, piece.subspan(0, 8));
        }
        Sample(StoreRows(arena, sequences, first, rows, shift, checks), rows, baseline, checks ? nullptr : &store);
      }
    }
    Print("load", label, state_bytes, rows, load);
    Print("store", label, state_bytes, rows, store);
  }

  struct Times {
    double call_us, copy_us;
  };
  static void Sample(const Times& times, uint32_t rows, Memcpy* baseline, Samples* samples) {
    const double memcpy_us = baseline->Copy(rows);
    if (samples == nullptr) return;
    samples->call_us.push_back(times.call_us);
    samples->copy_us.push_back(times.copy_us);
    samples->memcpy_us.push_back(memcpy_us);
  }

  Times LoadRows(Arena* arena, const std::vector<Sequence>& sequences, uint32_t first, uint32_t rows, uint32_t shift,
                 bool checks) {
    const auto sequence_of = [&](uint32_t row) -> const Sequence& {
      return sequences[(row + shift) % sequences.size()];
    };
    std::vector<v1::LoadItem> items;
    for (uint32_t row = first; row < first + rows; ++row)
      items.push_back(client::LoadRow(row, client::SequenceRef(sequence_of(row).name)));
    const Stopwatch watch;
    const client::LoadAnswer answer = Must(arena->Load(items), "Load");
    const Times times = {watch.microseconds(), absl::ToDoubleMicroseconds(answer.copy_time)};
    for (uint32_t i = 0; i < rows; ++i) {
      const v1::LoadedRow loaded = Must(answer.rows[i], "Load of a row");
      const Sequence& sequence = sequence_of(first + i);
      Check(loaded.copied() && loaded.info().checksum() == sequence.checksum &&
            (!checks || ChecksumOfRow(*arena, first + i) == sequence.checksum));
    }
    return times;
  }

  // Shift 0: rows that were not loaded.
  Times StoreRows(Arena* arena, std::vector<Sequence>* sequences, uint32_t first, uint32_t rows, uint32_t shift,
                  bool checks) {
    std::vector<v1::StoreItem> items;
    for (uint32_t row = first; row < first + rows; ++row) {
      Sequence& sequence = (*sequences)[(row + shift) % sequences->size()];
      v1::StoreItem& item = items.emplace_back(client::StoreRow(row, sequence.name, ++sequence.position));
      item.set_whole_row(shift == 0);
      item.mutable_options()->set_durability(v1::VOLATILE);
      item.mutable_options()->set_max_history(1);
    }
    const Stopwatch watch;
    const client::StoreAnswer answer = Must(arena->Store(items), "Store");
    const Times times = {watch.microseconds(), absl::ToDoubleMicroseconds(answer.copy_time)};
    for (uint32_t i = 0; i < rows; ++i) {
      Sequence& sequence = (*sequences)[(first + i + shift) % sequences->size()];
      sequence.checksum = Must(answer.rows[i], "Store of a row").checksum();
      Check(!checks || ChecksumOfRow(*arena, first + i) == sequence.checksum);
    }
    return times;
  }

  void Print(absl::string_view operation, const std::string& label, uint64_t state_bytes, uint32_t rows,
             const Samples& samples) const {
    const double bytes = static_cast<double>(state_bytes) * rows;
    std::vector<double> rpc_share;
    for (size_t i = 0; i < samples.call_us.size(); ++i)
      rpc_share.push_back(1 - samples.copy_us[i] / samples.call_us[i]);
    const double memcpy_rate = bytes / Median(samples.memcpy_us) * kGbPerS;
    const double copy_rate = bytes / Median(samples.copy_us) * kGbPerS;
    Figure(absl::StrCat("arena_", operation, "_", label))
        .Set("value", bytes / Median(samples.call_us) * kGbPerS)
        .Text("unit", "GB/s")
        .Set("n", static_cast<double>(samples.call_us.size()))
        .Set("p50", bytes / Median(samples.call_us) * kGbPerS)
        .Set("p99", bytes / Quantile(samples.call_us, 0.99) * kGbPerS)
        .Baseline(absl::StrCat("memcpy by ", threads_, " threads, p50"), memcpy_rate)
        .GoalAtLeast(bytes >= kLargeBytes ? "ratio" : "copy_ratio", kGoal)
        .Set("copy_ratio", copy_rate / memcpy_rate)
        .Set("copy_gb_per_s", copy_rate)
        .Set("rpc_share", Median(rpc_share))
        .Set("call_p50_us", Median(samples.call_us))
        .Set("call_p99_us", Quantile(samples.call_us, 0.99))
        .Set("rows", rows)
        .Set("state_bytes", static_cast<double>(state_bytes))
        .Print();
  }

  const Arguments arguments_;
  const size_t threads_;
  const uint32_t max_rows_;  // of large states, in one call
  uint64_t random_;
  const client::Pool pool_;
  uint64_t turn_ = 0;
  uint64_t wrong_ = 0, checked_ = 0;
};

}  // namespace
}  // namespace statepool::bench

int main(int argc, char** argv) { return statepool::bench::Bench(statepool::bench::Arguments(argc, argv)).Run(); }
