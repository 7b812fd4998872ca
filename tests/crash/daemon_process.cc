// Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#include "tests/crash/daemon_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace statepool::crash {

DaemonProcess::DaemonProcess(const std::vector<std::string>& command, const std::string& log) {
  std::vector<char*> arguments;
  for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  int pipe_ends[2];
  if (pipe2(pipe_ends, O_CLOEXEC) != 0) std::perror("pipe2"), std::exit(2);
  const int log_fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  pid_ = fork();
  if (pid_ == 0) {  // only async-signal-safe calls from here
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(pipe_ends[1], STDOUT_FILENO);
    dup2(log_fd, STDERR_FILENO);
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  if (pid_ < 0) std::perror("fork"), std::exit(2);
  close(pipe_ends[1]);
  close(log_fd);
  stdout_ = pipe_ends[0];
}

DaemonProcess::~DaemonProcess() {
  if (pid_ > 0) Kill(), Wait();
  close(stdout_);
}

bool DaemonProcess::WaitReady(int seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  std::string line;
  while (line.find('\n') == std::string::npos) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    pollfd ready = {stdout_, POLLIN, 0};
    if (left.count() <= 0 || poll(&ready, 1, static_cast<int>(left.count())) <= 0) return false;
    char buffer[4096];
    const ssize_t got = read(stdout_, buffer, sizeof(buffer));
    if (got <= 0) return false;
    line.append(buffer, static_cast<size_t>(got));
  }
  const size_t begin = line.find("127.0.0.1:", line.find("\"listen\""));
  if (line.find("\"event\":\"ready\"") == std::string::npos || begin == std::string::npos) return false;
  address_ = line.substr(begin, line.find('"', begin) - begin);
  const size_t metrics = line.find("127.0.0.1:", line.find("\"metrics\""));
  if (metrics != std::string::npos) metrics_ = line.substr(metrics, line.find('"', metrics) - metrics);
  return true;
}

void DaemonProcess::Kill() const { kill(pid_, SIGKILL); }

int DaemonProcess::Wait() {
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return status;
}

int DaemonProcess::Stop(int seconds) {
  kill(pid_, SIGTERM);
  for (int i = 0; i < seconds * 100; ++i) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) return pid_ = -1, status;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  Kill();
  return Wait();
}

}  // namespace statepool::crash
