// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "server/core/write_behind.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/core/error.h"

namespace statepool {
namespace {

// The disk's rate is told by the last seconds of writing: at this many the older ones count half.
constexpr double kSecondsRemembered = 10;
constexpr double kSecondsKnown = 0.1;        // before, the rate is not known
constexpr uint64_t kTellingBytes = 8 << 20;  // less tells of the disk's latency, not of its rate
// Whatever the disk does, so much may wait.
constexpr double kLeastBytes = 64 << 20;
constexpr absl::Duration kHintMin = absl::Milliseconds(20), kHintMax = absl::Seconds(10);

}  // namespace

void WriteBehind::Add(const Image& image) {
  Waiting& waiting = waiting_[image.info().id];
  if (waiting.names++ > 0) return;
  waiting.bytes = image.bytes() + image.info().attachment_bytes;
  dirty_bytes_ += waiting.bytes;
}

void WriteBehind::Remove(ImageId image) {
  const auto waiting = waiting_.find(image);
  if (--waiting->second.names > 0) return;
  dirty_bytes_ -= waiting->second.bytes;
  waiting_.erase(waiting);
}

uint64_t WriteBehind::max_dirty_bytes() const {
  if (written_seconds_ < kSecondsKnown || options_.stop_time == absl::InfiniteDuration())
    return options_.max_dirty_bytes;
  const double bytes = written_bytes_ / written_seconds_ * absl::ToDoubleSeconds(options_.stop_time);
  if (bytes >= static_cast<double>(options_.max_dirty_bytes)) return options_.max_dirty_bytes;
  return std::min(options_.max_dirty_bytes, static_cast<uint64_t>(std::max(bytes, kLeastBytes)));
}

absl::Status WriteBehind::Admit(ImageId image, uint64_t bytes, absl::Duration lag, Adding* adding) const {
  if (waiting_.contains(image) || adding->images.contains(image) || dirty_bytes_ == 0) {
    if (image != 0) adding->images.insert(image);
    return absl::OkStatus();
  }
  const uint64_t limit = max_dirty_bytes(), before = dirty_bytes_ + adding->bytes;
  const bool fits = bytes <= limit && before <= limit - bytes;
  const bool in_time = options_.lag_policy == LagPolicy::kDegrade || lag <= options_.max_lag;
  if (fits && in_time) {
    adding->bytes += bytes;
    if (image != 0) adding->images.insert(image);
    return absl::OkStatus();
  }
  absl::Duration hint = absl::Seconds(1);
  if (written_seconds_ >= kSecondsKnown && written_bytes_ > 0) {
    const uint64_t ahead = fits ? dirty_bytes_ : dirty_bytes_ - std::min(dirty_bytes_, limit / 2);
    hint = absl::Seconds(static_cast<double>(ahead) / (written_bytes_ / written_seconds_));
  }
  Error error(absl::StatusCode::kResourceExhausted, "FLUSH_BEHIND",
              fits ? absl::StrCat("the oldest unrecorded change waits for ", absl::FormatDuration(lag),
                                  ", longer than the ", absl::FormatDuration(options_.max_lag),
                                  " allowed: the disk is behind; retry, or write less often")
                   : absl::StrCat(dirty_bytes_, " bytes wait to be recorded on disk, and no more than ", limit,
                                  " may: the disk is behind; retry, or write less often"));
  return error.Meta("limit", fits ? absl::FormatDuration(options_.max_lag) : absl::StrCat(limit))
      .RetryAfter(std::clamp(hint, kHintMin, kHintMax));
}

uint64_t WriteBehind::Allowance(MonoTime now) {
  if (options_.bytes_per_second == UINT64_MAX) return UINT64_MAX;
  const double rate = static_cast<double>(options_.bytes_per_second);
  const double seconds = static_cast<double>(now - allowed_at_) / 1e9;
  allowance_ = std::min(rate, allowance_ + rate * std::max(0.0, seconds));
  allowed_at_ = now;
  return static_cast<uint64_t>(std::max(0.0, allowance_));
}

void WriteBehind::Charge(uint64_t bytes) {
  if (options_.bytes_per_second == UINT64_MAX) return;
  allowance_ = std::max(allowance_ - static_cast<double>(bytes), -static_cast<double>(options_.bytes_per_second));
}

void WriteBehind::Wrote(uint64_t bytes, absl::Duration took) {
  if (bytes < kTellingBytes) return;
  written_bytes_ += static_cast<double>(bytes);
  written_seconds_ += absl::ToDoubleSeconds(took);
  if (written_seconds_ < kSecondsRemembered) return;
  written_bytes_ /= 2;
  written_seconds_ /= 2;
}

}  // namespace statepool
