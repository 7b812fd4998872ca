// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "client/cpp/engines/sequence_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/arena.h"
#include "client/cpp/calls.h"
#include "client/cpp/errors.h"

namespace statepool::engines {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers and tensors are in the file as they are in memory");

using client::InvalidArgument;
using Axes = std::vector<std::string>;

constexpr uint32_t kMagic = 0x67677371;
constexpr uint32_t kVersionMin = 2, kVersionMax = 3;
constexpr int32_t kMarker = -1, kPayloadVersion = 1;  // of llama-server's tokens
constexpr uint64_t kPayloadWords = 4;                 // beside the tokens
constexpr int32_t kF32 = 0, kF16 = 1, kBf16 = 30;
constexpr char kHybrid[] = "A hybrid's file has the cache of its attention here, which no layout describes";

absl::Status InvalidFile(absl::string_view field, absl::string_view message) {
  return InvalidArgument("INVALID_FILE", field, message);
}
absl::Status Unsupported(absl::string_view field, absl::string_view message) {
  return InvalidArgument("UNSUPPORTED_LAYOUT", field, message);
}
absl::Status InvalidOption(absl::string_view field, absl::string_view message) {
  return InvalidArgument("INVALID_OPTION", field, message);
}
absl::Status Mismatch(absl::string_view field, absl::string_view message, absl::string_view expected,
                      absl::string_view actual) {
  return client::MakeError(absl::StatusCode::kInvalidArgument, "LAYOUT_MISMATCH", field, message,
                           {{"expected", std::string(expected)}, {"actual", std::string(actual)}});
}
absl::Status FileFailed(const std::string& path, absl::string_view what) {
  return client::MakeError(absl::ErrnoToStatusCode(errno), "FILE_FAILED", "path",
                           absl::StrCat(path, ": ", what, ": ", std::strerror(errno)));
}

std::optional<int32_t> TypeOf(v1::DType dtype) {
  switch (dtype) {
    case v1::FLOAT32: return kF32;
    case v1::FLOAT16: return kF16;
    case v1::BFLOAT16: return kBf16;
    default: return std::nullopt;
  }
}

std::string TypeName(int32_t type) {
  static const auto* const names = new std::map<int32_t, absl::string_view>{
      {kF32, "F32"},  {kF16, "F16"}, {2, "Q4_0"},  {3, "Q4_1"},  {6, "Q5_0"},  {7, "Q5_1"},  {8, "Q8_0"},
      {9, "Q8_1"},    {10, "Q2_K"},  {11, "Q3_K"}, {12, "Q4_K"}, {13, "Q5_K"}, {14, "Q6_K"}, {15, "Q8_K"},
      {20, "IQ4_NL"}, {24, "I8"},    {25, "I16"},  {26, "I32"},  {27, "I64"},  {28, "F64"},  {kBf16, "BF16"}};
  const auto found = names->find(type);
  return found == names->end() ? absl::StrCat("type ", type) : std::string(found->second);
}

uint64_t Times(uint64_t a, uint64_t b) {
  uint64_t product;
  return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}
uint64_t Plus(uint64_t a, uint64_t b) { return a > UINT64_MAX - b ? UINT64_MAX : a + b; }

// One tensor's share of the rows.
struct Piece {
  uint64_t offset;                // of its first layer in the image
  uint64_t bytes;                 // of a layer
  uint64_t element_bytes;         // 2 or 4
  std::vector<uint64_t> sizes;    // of the axes, in the file's order
  std::vector<uint64_t> strides;  // of these in the image, in bytes
  bool is_as_in_image;            // in both the same order
};

// R or S: a layer's row is its pieces, end to end.
struct Part {
  absl::string_view name;
  int32_t type = kF32;
  uint64_t row_bytes = 0;
  std::vector<Piece> pieces;
};

struct Plan {
  std::vector<uint32_t> layers;
  uint32_t n_layer = 0;
  uint64_t state_bytes = 0;
  Part parts[2];
};

// How the rows of this part have the axes of a tensor: one of `known`, or nothing.
std::optional<Axes> OrderOf(const v1::TensorSpec& tensor, const std::vector<Axes>& known) {
  Axes axes;
  for (const v1::Axis& axis : tensor.axes()) axes.push_back(axis.name());
  if (std::find(known.begin(), known.end(), axes) != known.end()) return axes;
  for (const Axes& order : known) {
    if (std::is_permutation(axes.begin(), axes.end(), order.begin(), order.end())) return order;
  }
  return std::nullopt;
}

absl::Status AddPiece(const v1::TensorSpec& tensor, uint64_t offset, const std::vector<Axes>& known, Part* part) {
  const std::optional<Axes> order = OrderOf(tensor, known);
  if (!order.has_value()) {
    return Unsupported(tensor.name(), absl::StrCat("tensor '", tensor.name(), "' has other axes than llama.cpp's: ",
                                                   absl::StrJoin(known, " or ",
                                                                 [](std::string* out, const Axes& axes) {
                                                                   absl::StrAppend(out, absl::StrJoin(axes, ", "));
                                                                 }),
                                                   ". Delta nets and linear attention it has in hybrids alone"));
  }
  Piece piece{offset, client::BytesOf(tensor.dtype()), client::BytesOf(tensor.dtype()), {}, {}, true};
  std::map<std::string, std::pair<uint64_t, uint64_t>> axes;  // size, stride
  for (int i = tensor.axes_size() - 1; i >= 0; --i) {
    axes[tensor.axes(i).name()] = {tensor.axes(i).size(), piece.bytes};
    piece.bytes = Times(piece.bytes, tensor.axes(i).size());
  }
  for (int i = 0; i < tensor.axes_size(); ++i) {
    const std::string& name = (*order)[static_cast<size_t>(i)];
    piece.sizes.push_back(axes[name].first);
    piece.strides.push_back(axes[name].second);
    piece.is_as_in_image = piece.is_as_in_image && name == tensor.axes(i).name();
  }
  part->type = *TypeOf(tensor.dtype());
  part->row_bytes = Plus(part->row_bytes, piece.bytes);
  part->pieces.push_back(std::move(piece));
  return absl::OkStatus();
}

absl::StatusOr<Plan> PlanOf(const v1::Layout& layout, uint32_t n_layer) {
  if (layout.tensors().empty() || layout.tensors(0).layers().empty())
    return Unsupported("layers", "the layout has no layers");
  std::vector<const v1::TensorSpec*> rolling, recurrent;
  size_t shifts = 0;
  for (const v1::TensorSpec& tensor : layout.tensors()) {
    if (tensor.kind() == v1::CONV || tensor.kind() == v1::SHIFT) {
      rolling.push_back(&tensor);
      shifts += tensor.kind() == v1::SHIFT ? 1 : 0;
    } else if (tensor.kind() == v1::RECURRENT) {
      recurrent.push_back(&tensor);
    } else {
      return Unsupported(tensor.name(),
                         absl::StrCat("tensor '", tensor.name(),
                                      "' is neither CONV, SHIFT nor RECURRENT, and llama.cpp has nothing "
                                      "else"));
    }
    if (!TypeOf(tensor.dtype()).has_value()) {
      return Unsupported(tensor.name(), absl::StrCat("tensor '", tensor.name(), "' is ", v1::DType_Name(tensor.dtype()),
                                                     ": a file has FLOAT32, FLOAT16 or BFLOAT16"));
    }
    if (!std::equal(tensor.layers().begin(), tensor.layers().end(), layout.tensors(0).layers().begin(),
                    layout.tensors(0).layers().end())) {
      return Unsupported("layers",
                         "the layers have different tensors, and llama.cpp has the same in all that have a state");
    }
  }
  const bool is_known = shifts == 0 ? rolling.size() == 1 : shifts == rolling.size() && shifts <= 2;
  if (!is_known || rolling.front()->dtype() != rolling.back()->dtype()) {
    return Unsupported(rolling.empty() ? "tensors" : rolling.front()->name(),
                       "llama.cpp has one convolution, or one or two shift states of one dtype, in each layer");
  }
  if (recurrent.size() > 1)
    return Unsupported(recurrent[1]->name(), "llama.cpp has one recurrent tensor in each layer");

  Plan plan;
  plan.layers.assign(layout.tensors(0).layers().begin(), layout.tensors(0).layers().end());
  plan.parts[0].name = "r";
  plan.parts[1].name = "s";
  const std::vector<Axes> of_r = shifts > 0 ? std::vector<Axes>{{"channel"}} : std::vector<Axes>{{"channel", "tap"}};
  const std::vector<Axes> of_s = shifts > 0 ? std::vector<Axes>{{"head", "key", "value"}, {"head", "value", "key"}}
                                            : std::vector<Axes>{{"channel", "state"}, {"head", "head_dim", "state"}};
  std::map<std::string, uint64_t> offsets;
  for (const v1::TensorSpec& tensor : layout.tensors()) {
    offsets[tensor.name()] = plan.state_bytes;
    uint64_t bytes = Times(client::BytesOf(tensor.dtype()), static_cast<uint64_t>(tensor.layers_size()));
    for (const v1::Axis& axis : tensor.axes()) bytes = Times(bytes, axis.size());
    plan.state_bytes = Plus(plan.state_bytes, bytes);
  }
  for (const auto& [tensors, known, part] :
       {std::tuple(&rolling, &of_r, &plan.parts[0]), std::tuple(&recurrent, &of_s, &plan.parts[1])}) {
    for (const v1::TensorSpec* tensor : *tensors) {
      if (const absl::Status added = AddPiece(*tensor, offsets[tensor->name()], *known, part); !added.ok())
        return added;
    }
  }
  const uint64_t least = uint64_t{plan.layers.back()} + 1;
  if (least > UINT32_MAX || (n_layer != 0 && n_layer < least)) {
    return InvalidOption("n_layer", absl::StrCat("the layout's last layer is ", least - 1, ": a model of ", n_layer,
                                                 " layers can't have it"));
  }
  plan.n_layer = n_layer == 0 ? static_cast<uint32_t>(least) : n_layer;
  return plan;
}

// Calls move(in row, in image, bytes) for the stretches of a layer's piece, both offsets from where it begins.
template <typename Move>
void ForEachStretch(const Piece& piece, Move move) {
  if (piece.is_as_in_image) return move(0, 0, piece.bytes);
  std::vector<uint64_t> index(piece.sizes.size(), 0);
  uint64_t in_image = 0;
  for (uint64_t in_row = 0; in_row < piece.bytes; in_row += piece.element_bytes) {
    move(in_row, in_image, piece.element_bytes);
    for (size_t axis = index.size(); axis-- > 0;) {
      in_image += piece.strides[axis];
      if (++index[axis] < piece.sizes[axis]) break;
      in_image -= piece.strides[axis] * piece.sizes[axis];
      index[axis] = 0;
    }
  }
}

// Goes through a file once to verify its fields, and then takes the rows.
class Reader {
 public:
  Reader(const std::string& path, int fd, uint64_t size) : path_(path), fd_(fd), size_(size) {}

  absl::StatusOr<SequenceFile> Read(const Plan& plan) {
    SequenceFile file;
    uint64_t tokens_at = 0, count = 0;
    if (absl::Status status = Head(&file.options, &tokens_at, &count); !status.ok()) return status;
    if (absl::Status status = Cell(count); !status.ok()) return status;
    if (absl::Status status = Take("n_layer", &file.options.n_layer); !status.ok()) return status;
    if (file.options.n_layer != plan.n_layer) {
      return Mismatch(
          "n_layer",
          absl::StrCat("the file is of a model of ", file.options.n_layer, " layers, this one has ", plan.n_layer),
          absl::StrCat(plan.n_layer), absl::StrCat(file.options.n_layer));
    }
    const absl::StatusOr<std::vector<uint64_t>> rows = Rows(plan);
    if (!rows.ok()) return rows.status();
    if (at_ != size_) return InvalidFile("size", absl::StrCat(size_ - at_, " bytes are behind the last row"));

    file.position = static_cast<int64_t>(count);
    file.tokens.resize(count);
    if (absl::Status status = Fill(tokens_at, file.tokens.data(), 4 * count); !status.ok()) return status;
    for (size_t i = 0; i < file.tokens.size(); ++i) {
      if (file.tokens[i] > INT32_MAX) return InvalidFile("tokens", absl::StrCat("token ", i, " is negative"));
    }
    file.data.resize(plan.state_bytes);  // no more than the rows, which are in the file
    if (absl::Status status = Image(plan, *rows, &file.data); !status.ok()) return status;
    return file;
  }

 private:
  // To the end of the tokens.
  absl::Status Head(SequenceFileOptions* options, uint64_t* tokens_at, uint64_t* count) {
    uint32_t magic = 0, words = 0;
    if (absl::Status status = Take("magic", &magic); !status.ok()) return status;
    if (magic != kMagic) {
      return InvalidFile("magic",
                         absl::StrCat("the file begins with 0x", absl::Hex(magic, absl::kZeroPad8), ", not 0x",
                                      absl::Hex(kMagic), ": it is not one of llama.cpp's files of a sequence"));
    }
    if (absl::Status status = Take("version", &options->version); !status.ok()) return status;
    if (options->version < kVersionMin || options->version > kVersionMax)
      return InvalidFile("version", absl::StrCat("version ", options->version, " is not known here: 2 or 3"));
    if (absl::Status status = Take("n_tokens", &words); !status.ok()) return status;
    if (words > (size_ - at_) / 4) {
      return InvalidFile("n_tokens", absl::StrCat("the file has ", size_, " bytes, not room for ", words, " tokens"));
    }
    *tokens_at = at_;
    *count = words;
    const uint64_t end = at_ + uint64_t{4} * words;
    int32_t first = 0;
    if (words > 0) {
      if (absl::Status status = Fill(at_, &first, sizeof(first)); !status.ok()) return status;
    }
    if (first == kMarker && words > 0) {
      options->packed = true;
      if (absl::Status status = Packed(words, count); !status.ok()) return status;
      *tokens_at += 12;
    }
    at_ = end;
    return absl::OkStatus();
  }

  // llama-server's tokens, of which the marker was seen.
  absl::Status Packed(uint64_t words, uint64_t* count) {
    if (words < kPayloadWords) {
      return InvalidFile("tokens",
                         absl::StrCat("llama-server's tokens take ", kPayloadWords, " words and more, not ", words));
    }
    int32_t version = 0;
    uint32_t tokens = 0, media = 0;
    if (absl::Status status = Fill(at_ + 4, &version, sizeof(version)); !status.ok()) return status;
    if (version != kPayloadVersion) {
      return InvalidFile("tokens", absl::StrCat("version ", version,
                                                " of llama-server's tokens is not known here: ", kPayloadVersion));
    }
    if (absl::Status status = Fill(at_ + 8, &tokens, sizeof(tokens)); !status.ok()) return status;
    const uint64_t media_at = std::min<uint64_t>(3 + uint64_t{tokens}, words - 1);
    if (absl::Status status = Fill(at_ + 4 * media_at, &media, sizeof(media)); !status.ok()) return status;
    if (tokens > words - kPayloadWords || (media == 0 && tokens != words - kPayloadWords)) {
      return InvalidFile(
          "tokens", absl::StrCat("llama-server's ", words, " words don't hold ", tokens, " tokens and nothing else"));
    }
    if (media != 0) {
      return InvalidFile("tokens", absl::StrCat("there are media among the tokens (", media,
                                                "), which are more positions than tokens"));
    }
    *count = tokens;
    return absl::OkStatus();
  }

  absl::Status Cell(uint64_t count) {
    uint32_t cells = 0, n_seq = 0, s_trans = 0;
    int32_t pos = 0;
    if (absl::Status status = Take("cells", &cells); !status.ok()) return status;
    if (cells != 1) {
      return InvalidFile("cells",
                         absl::StrCat("a sequence of a recurrent model is one cell, not ", cells, ". ", kHybrid));
    }
    if (absl::Status status = Take("pos", &pos); !status.ok()) return status;
    if (pos < 0 || static_cast<uint64_t>(pos) + 1 != count) {
      return InvalidFile("pos", absl::StrCat("the last token is at ", pos, ", and the file has ", count,
                                             " tokens. llama.cpp writes whichever it is given, but only those that "
                                             "lead to the state tell what it is. ",
                                             kHybrid));
    }
    if (absl::Status status = Take("n_seq", &n_seq); !status.ok()) return status;
    if (n_seq != 0)
      return InvalidFile("n_seq", absl::StrCat("a file of one sequence names none, this one ", n_seq, ". ", kHybrid));
    if (absl::Status status = Take("s_trans", &s_trans); !status.ok()) return status;
    if (s_trans != 0) return InvalidFile("s_trans", "S is transposed, which llama.cpp does not write");
    return absl::OkStatus();
  }

  // Where each row begins, those of R first. They lie within the file.
  absl::StatusOr<std::vector<uint64_t>> Rows(const Plan& plan) {
    std::vector<uint64_t> rows;
    for (const Part& part : plan.parts) {
      for (const uint32_t layer : plan.layers) {
        const std::string field = absl::StrCat(part.name, "[", layer, "]");
        int32_t type = 0;
        uint64_t row_bytes = 0;
        if (absl::Status status = Take(absl::StrCat(field, ".type"), &type); !status.ok()) return status;
        if (type != part.type) {
          return Mismatch(absl::StrCat(field, ".type"),
                          absl::StrCat("layer ", layer, " is ", TypeName(type), " in the file and ",
                                       TypeName(part.type), " in the layout"),
                          TypeName(part.type), TypeName(type));
        }
        if (absl::Status status = Take(absl::StrCat(field, ".row_bytes"), &row_bytes); !status.ok()) return status;
        if (row_bytes != part.row_bytes) {
          return Mismatch(absl::StrCat(field, ".row_bytes"),
                          absl::StrCat("layer ", layer, " has ", row_bytes, " bytes in the file and ", part.row_bytes,
                                       " in the layout"),
                          absl::StrCat(part.row_bytes), absl::StrCat(row_bytes));
        }
        if (row_bytes > size_ - at_) return InvalidFile(field, absl::StrCat("the file ends within layer ", layer));
        rows.push_back(at_);
        at_ += row_bytes;
      }
    }
    return rows;
  }

  absl::Status Image(const Plan& plan, const std::vector<uint64_t>& rows, std::string* image) {
    std::string row;
    for (size_t i = 0; i < rows.size(); ++i) {
      const Part& part = plan.parts[i / plan.layers.size()];
      const size_t layer = i % plan.layers.size();
      row.resize(part.row_bytes);
      if (absl::Status status = Fill(rows[i], row.data(), row.size()); !status.ok()) return status;
      const char* from = row.data();
      for (const Piece& piece : part.pieces) {
        char* const to = image->data() + piece.offset + layer * piece.bytes;
        ForEachStretch(piece, [&](uint64_t in_row, uint64_t in_image, uint64_t bytes) {
          std::memcpy(to + in_image, from + in_row, bytes);
        });
        from += piece.bytes;
      }
    }
    return absl::OkStatus();
  }

  template <typename T>
  absl::Status Take(absl::string_view field, T* value) {
    if (sizeof(T) > size_ - at_) {
      return InvalidFile(field, absl::StrCat("the file ends after ", size_, " bytes, within or before its ", field));
    }
    at_ += sizeof(T);
    return Fill(at_ - sizeof(T), value, sizeof(T));
  }

  // REQUIRES: it lies within the file.
  absl::Status Fill(uint64_t at, void* to, uint64_t bytes) {
    for (uint64_t done = 0; done < bytes;) {
      const ssize_t got = pread(fd_, static_cast<char*>(to) + done, bytes - done, static_cast<off_t>(at + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return FileFailed(path_, "read");
      if (got == 0) return InvalidFile("size", "the file became shorter while it was read");
      done += static_cast<uint64_t>(got);
    }
    return absl::OkStatus();
  }

  const std::string& path_;
  const int fd_;
  const uint64_t size_;
  uint64_t at_ = 0;
};

// Reads an image that lies in pieces, front to back within each stretch.
class Image {
 public:
  explicit Image(absl::Span<const absl::string_view> pieces) : pieces_(pieces) {
    for (const absl::string_view piece : pieces_) {
      starts_.push_back(size_);
      size_ += piece.size();
    }
  }
  uint64_t size() const { return size_; }
  // REQUIRES: it lies within.
  void Copy(uint64_t at, uint64_t bytes, char* to) const {
    size_t i = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), at) - starts_.begin()) - 1;
    for (; bytes > 0; ++i) {
      const absl::string_view found = pieces_[i].substr(at - starts_[i], bytes);
      std::memcpy(to, found.data(), found.size());
      at += found.size();
      to += found.size();
      bytes -= found.size();
    }
  }

 private:
  const absl::Span<const absl::string_view> pieces_;
  std::vector<uint64_t> starts_;
  uint64_t size_ = 0;
};

template <typename T>
bool Put(std::FILE* file, const T& value) {
  return std::fwrite(&value, sizeof(value), 1, file) == 1;
}

bool WriteAll(std::FILE* file, const Plan& plan, const Image& image, absl::Span<const uint32_t> tokens,
              const SequenceFileOptions& options) {
  const uint32_t count = static_cast<uint32_t>(tokens.size());
  bool ok = Put(file, kMagic) && Put(file, options.version) &&
            Put(file, static_cast<uint32_t>(count + (options.packed ? kPayloadWords : 0)));
  if (options.packed) ok = ok && Put(file, kMarker) && Put(file, kPayloadVersion) && Put(file, count);
  ok = ok && std::fwrite(tokens.data(), sizeof(uint32_t), count, file) == count;
  if (options.packed) ok = ok && Put(file, uint32_t{0});
  ok = ok && Put(file, uint32_t{1}) && Put(file, static_cast<int32_t>(count) - 1) && Put(file, uint32_t{0}) &&
       Put(file, uint32_t{0}) && Put(file, plan.n_layer);
  std::string of_layer, row;
  for (const Part& part : plan.parts) {
    row.resize(part.row_bytes);
    for (size_t layer = 0; layer < plan.layers.size() && ok; ++layer) {
      char* to = row.data();
      for (const Piece& piece : part.pieces) {
        of_layer.resize(piece.bytes);
        image.Copy(piece.offset + layer * piece.bytes, piece.bytes, of_layer.data());
        ForEachStretch(piece, [&](uint64_t in_row, uint64_t in_image, uint64_t bytes) {
          std::memcpy(to + in_row, of_layer.data() + in_image, bytes);
        });
        to += piece.bytes;
      }
      ok = Put(file, part.type) && Put(file, part.row_bytes) &&
           std::fwrite(row.data(), 1, row.size(), file) == row.size();
    }
  }
  return ok;
}

}  // namespace

absl::StatusOr<SequenceFile> ReadSequenceFile(const std::string& path, const v1::Layout& layout, uint32_t n_layer) {
  const absl::StatusOr<Plan> plan = PlanOf(layout, n_layer);
  if (!plan.ok()) return plan.status();
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe without a writer is no file either
  if (fd < 0) return FileFailed(path, "open");
  const absl::Cleanup close_it = [fd] { close(fd); };
  struct stat found;
  if (fstat(fd, &found) != 0) return FileFailed(path, "stat");
  if (!S_ISREG(found.st_mode) && !S_ISDIR(found.st_mode))
    return InvalidFile("path", absl::StrCat(path, " is no regular file"));
  return Reader(path, fd, static_cast<uint64_t>(found.st_size)).Read(*plan);
}

absl::Status WriteSequenceFile(const std::string& path, const v1::Layout& layout,
                               absl::Span<const absl::string_view> pieces, absl::Span<const uint32_t> tokens,
                               const SequenceFileOptions& options) {
  const absl::StatusOr<Plan> plan = PlanOf(layout, options.n_layer);
  if (!plan.ok()) return plan.status();
  if (options.version < kVersionMin || options.version > kVersionMax)
    return InvalidOption("version", absl::StrCat("version ", options.version, " is not known here: 2 or 3"));
  if (tokens.empty() || tokens.size() > INT32_MAX ||
      std::any_of(tokens.begin(), tokens.end(), [](uint32_t token) { return token > INT32_MAX; })) {
    return InvalidOption("tokens", "a file has the tokens that lead to its state, at least one, 0..2^31-1 each");
  }
  const Image image(pieces);
  if (image.size() != plan->state_bytes) {
    return client::MakeError(absl::StatusCode::kInvalidArgument, "BYTES_LENGTH_MISMATCH", "data",
                             absl::StrCat("there should be ", plan->state_bytes, " bytes, not ", image.size()),
                             {{"expected", absl::StrCat(plan->state_bytes)}, {"actual", absl::StrCat(image.size())}});
  }
  const std::string part = absl::StrCat(path, ".part");
  std::FILE* const file = std::fopen(part.c_str(), "wbe");
  if (file == nullptr) return FileFailed(part, "open");
  const bool is_written = WriteAll(file, *plan, image, tokens, options);
  absl::Status status = is_written ? absl::OkStatus() : FileFailed(part, "write");
  if (std::fclose(file) != 0 && status.ok()) status = FileFailed(part, "write");
  if (status.ok() && std::rename(part.c_str(), path.c_str()) != 0) status = FileFailed(path, "rename");
  if (!status.ok()) std::remove(part.c_str());
  return status;
}

}  // namespace statepool::engines
