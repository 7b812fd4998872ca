// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// llama.cpp's file of one sequence ('ggsq', llama_state_seq_save_file) of a purely recurrent model, to and from images
// of a layout. statepool.ggsq does the same in Python.
//
//   auto file = ReadSequenceFile("slot.bin", layout);
//   pool.Set("chat/42", "my-model", file->position, file->data);
//   pool.PublishPrefix("my-model", file->tokens, SequenceRef("chat/42"));
//   WriteSequenceFile("slot.bin", layout, pool.Get(SequenceRef("chat/42"))->pieces(), file->tokens);
//
// The file, all little-endian:
//   field                  type        what it is
//   magic                  u32         0x67677371
//   version                u32         2 or 3: for these models the same
//   n_tokens               u32
//   tokens                 i32 each    or, since llama-server keeps media: -1, 1, count, the tokens, 0 (no media)
//   cells                  u32         1
//   pos                    i32         the last token's index: the position is pos + 1, and the number of the tokens
//   n_seq                  u32         0
//   s_trans                u32         0
//   n_layer                u32         all layers of the model
//   r[layer], ascending, for each layer that has a state:
//     type                 i32         F32 (0), F16 (1), BF16 (30)
//     row_bytes            u64
//     the row                          one CONV, [channel, tap], the oldest tap first, where presets have [tap,
//     channel];
//                                      or one or two SHIFT [channel], in the layout's order: att_shift, ffn_shift
//   s[layer], likewise                 one RECURRENT: [channel, state], [head, head_dim, state], or of RWKV
//                                      [head, key, value] or [head, value, key], whichever the layout has. None: F32
//                                      and 0 bytes
//
// Tensors find their place by the names of their axes, in whatever order the layout has these. Dtypes are the layout's,
// nothing is converted: llama.cpp itself has F32 alone, where the presets' default for convolutions is BFLOAT16. There
// is neither a checksum nor a model's name in such a file: flipped bits of a state, and a state of another model of the
// same shape, can't be told.
//
// Refused are hybrids: the cache of their attention is before the states, a layout does not describe it, and without it
// llama.cpp does not take the file; with them every model whose layers have delta nets or linear attention, and whose
// layers have states of several kinds.
//
// Errors, INVALID_ARGUMENT with the reason and the field (client/cpp/errors.h; of the file, "r[3].row_bytes"):
//   INVALID_FILE           the file ends early or late, is not of this format and a version above, or is a hybrid's;
//   its
//                          tokens are not as many as its position says
//   LAYOUT_MISMATCH        n_layer, a type or a row's size is not the layout's (metadata: expected, actual)
//   UNSUPPORTED_LAYOUT     no such file can have this layout's tensors (field: the tensor, or "layers")
//   INVALID_OPTION         n_layer, version, tokens
//   BYTES_LENGTH_MISMATCH  data: the image to write is not as long as the layout says
// and FILE_FAILED (path), with the code of what the system said.
//
// The functions are thread-safe, and ask no daemon. One writer of a path at a time.
#ifndef STATEPOOL_CLIENT_CPP_ENGINES_SEQUENCE_FILE_H_
#define STATEPOOL_CLIENT_CPP_ENGINES_SEQUENCE_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "statepool/v1/statepool.pb.h"

namespace statepool::engines {

struct SequenceFileOptions {
  uint32_t version = 3;  // llama.cpp takes its own alone
  // The tokens are written as llama-server does it now; it reads both. For llama_state_seq_load_file without a server:
  // false.
  bool packed = false;
  uint32_t n_layer = 0;  // layers of the model; 0: the layout's last one is the model's last
};

struct SequenceFile {
  std::string data;              // the image, as long as the layout says
  int64_t position = 0;          // tokens consumed
  std::vector<uint32_t> tokens;  // those, `position` of them, below 2^31 each
  SequenceFileOptions options;   // with which WriteSequenceFile gives the same file, byte for byte
};

// The state in a file, as an image of `layout`. Every field is verified before memory is taken for the state; that of
// the tokens is within the file's size. Of n_layer: SequenceFileOptions.
absl::StatusOr<SequenceFile> ReadSequenceFile(const std::string& path, const v1::Layout& layout, uint32_t n_layer = 0);

// Writes an image of `layout`, whose bytes are the pieces end to end, as llama_state_seq_save_file would. `tokens` lead
// to the state: there are as many as its position, at least one, below 2^31 each. What was at `path` is replaced when
// all is written, and stays after an error. Nothing is kept of the arguments.
absl::Status WriteSequenceFile(const std::string& path, const v1::Layout& layout,
                               absl::Span<const absl::string_view> pieces, absl::Span<const uint32_t> tokens,
                               const SequenceFileOptions& options = {});

}  // namespace statepool::engines

#endif  // STATEPOOL_CLIENT_CPP_ENGINES_SEQUENCE_FILE_H_
