// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
//
// DaemonProcess: one run of the daemon. It is killed with this object, and by the system when this process dies.
#ifndef STATEPOOL_TESTS_CRASH_DAEMON_PROCESS_H_
#define STATEPOOL_TESTS_CRASH_DAEMON_PROCESS_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace statepool::crash {

// Not thread-safe, but for Kill().
class DaemonProcess {
 public:
  // Starts it; its stderr is appended to the file `log`. REQUIRES: called by the main thread, which outlives the
  // daemon.
  DaemonProcess(const std::vector<std::string>& command, const std::string& log);
  ~DaemonProcess();
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  // Waits for the line that says it serves. False: it ended, or said nothing for `seconds`.
  bool WaitReady(int seconds);
  const std::string& address() const { return address_; }
  const std::string& metrics() const { return metrics_; }

  void Kill() const;  // SIGKILL; does not wait
  // Waits for its end; gives waitpid's status.
  int Wait();
  // SIGTERM, and SIGKILL after `seconds`; gives waitpid's status.
  int Stop(int seconds);

 private:
  pid_t pid_ = -1;
  int stdout_ = -1;
  std::string address_, metrics_;
};

}  // namespace statepool::crash

#endif  // STATEPOOL_TESTS_CRASH_DAEMON_PROCESS_H_
