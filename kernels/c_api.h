/* Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
 *
 * The kernels for programs in other languages: a shared library (target statepool_kernels_c, libstatepool_kernels.so)
 * with these functions and nothing else, which needs no library but those of the compiler. A build with nvcc makes a
 * second one, libstatepool_kernels_cuda.so, with the kernels for a GPU: it has the CUDA runtime within, needs Abseil's
 * shared libraries, and loads on machines without a driver all the same. In the first the functions for a GPU say that
 * it has none. Plans of one are not for the other.
 *
 * A *root* is the checksum of an image (checksum.h). Sizes, strides and offsets are in bytes unless they say otherwise.
 * No function keeps a pointer that it is given, but for plans, which are copied. All are thread-safe; none throws.
 * Those that can fail give 0, or null, for success and failure as they say.
 */
#ifndef STATEPOOL_KERNELS_C_API_H_
#define STATEPOOL_KERNELS_C_API_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define STATEPOOL_KERNELS_EXPORT __attribute__((visibility("default")))

/* Grows with each change of what follows: a program refuses a library of another version. */
#define STATEPOOL_KERNELS_VERSION 3
STATEPOOL_KERNELS_EXPORT uint32_t statepool_kernels_version(void);

/* What the functions that give an int give. */
enum {
  STATEPOOL_KERNELS_OK = 0,
  STATEPOOL_KERNELS_INVALID = 1,   /* an argument is out of its range; nothing was written */
  STATEPOOL_KERNELS_NO_MEMORY = 2, /* what was to be written is undefined */
  STATEPOOL_KERNELS_DEVICE = 3,    /* a device function failed: statepool_kernels_device_error tells why */
};

/* Bytes of the caller's. */
typedef struct {
  const void* data;
  uint64_t size;
} statepool_kernels_piece;

/* *root = that of the image that the pieces are when laid end to end. Fails for lack of memory alone. */
STATEPOOL_KERNELS_EXPORT int statepool_kernels_hash(const statepool_kernels_piece* pieces, size_t count,
                                                    uint64_t* root);

/* Copies the pieces to `to`, end to end, and hashes them on their way: the root is that of the bytes that were written,
 * also when somebody writes to the pieces meanwhile. REQUIRES: `to` has room for all and overlaps with none. */
STATEPOOL_KERNELS_EXPORT int statepool_kernels_copy_and_hash(void* to, const statepool_kernels_piece* pieces,
                                                             size_t count, uint64_t* root);

/* One layer of one tensor: the message CopySegment of statepool.proto, field by field. */
typedef struct {
  uint64_t state_offset;
  uint64_t arena_offset;
  uint64_t row_stride;
  uint64_t accept_stride;
  uint64_t clear_offset;
  uint64_t clear_bytes;
  const uint64_t* sizes;   /* of its axes, axis_count of them */
  const uint64_t* strides; /* of the same */
  uint32_t element_bytes;
  uint32_t axis_count;
} statepool_kernels_segment;

/* How a state lies in the rows of an arena. Immutable. */
typedef struct statepool_kernels_plan statepool_kernels_plan;

/* A plan for an arena of `arena_bytes` with so many rows, of which accepted lengths of 1..accepted_max may be stored.
 * Null when the segments do not make up a state of state_bytes, or when any of it would lie outside of the arena: with
 * a plan nothing else is ever read or written there. Null also for lack of memory. At most 65,536 segments of at most
 * 16 axes. */
STATEPOOL_KERNELS_EXPORT statepool_kernels_plan* statepool_kernels_plan_create(
    const statepool_kernels_segment* segments, size_t count, uint64_t state_bytes, uint64_t arena_bytes, uint32_t rows,
    uint32_t accepted_max);

/* Frees it; null is fine. REQUIRES: nobody uses it. */
STATEPOOL_KERNELS_EXPORT void statepool_kernels_plan_destroy(statepool_kernels_plan* plan);

/* Copies a state into the first step of each of these rows, and makes zero what only the arena has there: what Load
 * does. REQUIRES: `state` and `arena` are what the plan says, and nobody else writes to these rows. INVALID: no such
 * row. */
STATEPOOL_KERNELS_EXPORT int statepool_kernels_gather(const statepool_kernels_plan* plan, const void* state,
                                                      void* arena, const uint32_t* rows, size_t row_count);

/* Writes the state that the row holds after `accepted` steps to `state`, with the root of what was written, also when
 * somebody writes to the row meanwhile: what Store does. INVALID: no such row or accepted length. */
STATEPOOL_KERNELS_EXPORT int statepool_kernels_scatter(const statepool_kernels_plan* plan, const void* arena,
                                                       uint32_t row, uint32_t accepted, void* state, uint64_t* root);

/* Where the rows of an arena have the states of their steps, and the moves between (advance_plan.h). Immutable. */
typedef struct statepool_kernels_advance statepool_kernels_advance;

/* One layer of one tensor: AdvanceSegment of advance_plan.h, field by field. */
typedef struct {
  uint64_t arena_offset;
  uint64_t row_stride;
  uint64_t step_stride;
  const uint64_t* sizes;   /* of the axes of one step, or column, axis_count of them */
  const uint64_t* strides; /* of the same */
  uint32_t steps;
  uint32_t window;
  uint32_t element_bytes;
  uint32_t axis_count;
} statepool_kernels_advance_segment;

/* A row's move. `steps` is the path, bit i for step i: of accepted length a the lowest a bits. */
typedef struct {
  uint64_t steps;
  uint32_t from_row;
  uint32_t to_row;
} statepool_kernels_move;

/* A plan for an arena of `arena_bytes` with so many rows of steps_max steps, 1..64. Null when any of it would lie
 * outside of the arena, or there are fewer steps or columns; null also for lack of memory. Limits as of plan_create. */
STATEPOOL_KERNELS_EXPORT statepool_kernels_advance* statepool_kernels_advance_create(
    const statepool_kernels_advance_segment* segments, size_t count, uint64_t arena_bytes, uint32_t rows,
    uint32_t steps_max);

/* Frees it; null is fine. REQUIRES: nobody uses it. */
STATEPOOL_KERNELS_EXPORT void statepool_kernels_advance_destroy(statepool_kernels_advance* plan);

/* Moves rows to the states after their accepted tokens: what Advance does. REQUIRES: `arena` is what the plan says, no
 * row is written by two moves, or written by one and read by another, and nobody else touches them. INVALID: no such
 * row, or no path of the plan's steps; then nothing was moved. */
STATEPOOL_KERNELS_EXPORT int statepool_kernels_advance_rows(const statepool_kernels_advance* plan, void* arena,
                                                            const statepool_kernels_move* moves, size_t count);

/* roots[i] = that of the image whose leaves' hashes are leaves[i * leaf_count ..]; for `count` images. */
STATEPOOL_KERNELS_EXPORT void statepool_kernels_roots(const uint64_t* leaves, size_t leaf_count, size_t count,
                                                      uint64_t* roots);

/* ---- On a GPU. The primary context of the GPU is current in the calling thread, in every call; streams are CUstream
 * or cudaStream_t, 0 the legacy one. Addresses of states, arenas and hashes are such that the GPU reaches them; there
 * is no check that they are. What is put into a stream has happened when the stream has passed it: what it reads and
 * writes must live until then. device_copy_plan.h has the rest. */

/* Why the last device function of this thread failed, in a sentence: of the GPU, its driver, or of a library without
 * kernels for one. Valid until the thread's next failure. */
STATEPOOL_KERNELS_EXPORT const char* statepool_kernels_device_error(void);

/* A plan in the memory of a GPU. Immutable. */
typedef struct statepool_kernels_device_plan statepool_kernels_device_plan;

/* Copies a plan there, and waits for it; null: it failed. */
STATEPOOL_KERNELS_EXPORT statepool_kernels_device_plan* statepool_kernels_device_plan_create(
    const statepool_kernels_plan* plan);

/* Frees it; null is fine. REQUIRES: what was enqueued with it is done. Without its GPU nothing is freed. */
STATEPOOL_KERNELS_EXPORT void statepool_kernels_device_plan_destroy(statepool_kernels_device_plan* plan);

/* Enqueues what statepool_kernels_gather does: states[i] into rows[i]. REQUIRES: no row twice. INVALID: no such row;
 * then nothing is enqueued. DEVICE: all of it, a part or nothing may be. */
STATEPOOL_KERNELS_EXPORT int statepool_kernels_device_gather(const statepool_kernels_device_plan* plan,
                                                             const void* const* states, const uint32_t* rows,
                                                             size_t count, void* arena, void* stream);

/* Enqueues what statepool_kernels_scatter does: rows[i], after accepted[i] steps, to states[i], with the hashes of its
 * leaves to hashes[i * leaf_count ..], leaf_count being ceil(state_bytes / 65,536); roots for them give the checksums.
 * Errors as above, and INVALID for such an accepted length. */
STATEPOOL_KERNELS_EXPORT int statepool_kernels_device_scatter(const statepool_kernels_device_plan* plan,
                                                              const uint32_t* rows, const uint32_t* accepted,
                                                              void* const* states, size_t count, const void* arena,
                                                              uint64_t* hashes, void* stream);

/* The same for moves of rows. */
typedef struct statepool_kernels_device_advance statepool_kernels_device_advance;

STATEPOOL_KERNELS_EXPORT statepool_kernels_device_advance* statepool_kernels_device_advance_create(
    const statepool_kernels_advance* plan);

STATEPOOL_KERNELS_EXPORT void statepool_kernels_device_advance_destroy(statepool_kernels_device_advance* plan);

/* Enqueues what statepool_kernels_advance_rows does, in one launch for 1,024 moves. INVALID: as there; then nothing is
 * enqueued. DEVICE: all of it, a part or nothing may be. */
STATEPOOL_KERNELS_EXPORT int statepool_kernels_device_advance_rows(const statepool_kernels_device_advance* plan,
                                                                   void* arena, const statepool_kernels_move* moves,
                                                                   size_t count, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* STATEPOOL_KERNELS_C_API_H_ */
