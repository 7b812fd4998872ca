"""The arena socket as any process sees it: what it hands out, what it refuses, and that the daemon lives on.

Through stock generated stubs and a plain socket. What the packages make of arenas is tested with them.
"""
import array
import contextlib
import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time

import grpc
import pytest

from daemon_process import Daemon, eventually

BYTES = 96 << 10
F_GET_SEALS, SEAL_SHRINK, SEAL_GROW = 1034, 2, 4


class Client:
    """The stub, and what tests do all the time."""

    def __init__(self, stubs, daemon):
        self.pb, self.daemon = stubs.pb, daemon
        self.channel = grpc.insecure_channel(daemon.address, [("grpc.enable_http_proxy", 0)])
        self.stub = stubs.grpc.StatePoolStub(self.channel)
        pb = self.pb
        self.stub.RegisterLayout(pb.RegisterLayoutRequest(alias="m", layout=pb.Layout(model_id="m", tensors=[
            pb.TensorSpec(name="t", kind=pb.RECURRENT, layers=[0], dtype=pb.UINT8, axes=[pb.Axis(name="a", size=BYTES)])])))

    def open(self, rows=2):
        return self.stub.OpenArena(self.pb.OpenArenaRequest(layout="m", rows=rows), timeout=30)

    def used_bytes_at_rest(self):
        """With what a pool keeps of the slots that were once reserved."""
        with connect(arena := self.open()) as connection:
            _, descriptor = exchange(connection, arena.token)
            os.close(descriptor)
            self.close(arena)
        time.sleep(0.2)
        return self.used_bytes()

    def used_bytes(self):
        return self.stub.GetCapabilities(self.pb.GetCapabilitiesRequest()).devices[0].used_bytes

    def set(self, name, fill):
        return self.stub.Set(self.pb.SetRequest(sequence=name, layout="m", position=1, data=bytes([fill]) * BYTES,
                                                options=self.pb.NameOptions(durability=self.pb.VOLATILE)))

    def load(self, arena, name, row=0):
        answer = self.stub.Load(self.pb.LoadRequest(arena=arena.arena, items=[
            self.pb.LoadItem(row=row, name=self.pb.NameRef(sequence=name))]), timeout=30)
        assert not answer.rows[0].HasField("error"), answer

    def close(self, arena):
        return self.stub.CloseArena(self.pb.CloseArenaRequest(arena=arena.arena, allow_missing=True)).closed


def address_of(path):
    return "\0" + path[1:] if path.startswith("@") else path


def connect(arena):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(30)
    connection.connect(address_of(arena.socket))
    return connection


def exchange(connection, token):
    """The answer, and the descriptor or None."""
    connection.send(token)
    text, descriptors, _, _ = socket.recv_fds(connection, 4096, 4)
    assert len(descriptors) <= 1
    return json.loads(text), (descriptors or [None])[0]


@contextlib.contextmanager
def mapped(arena):
    with connect(arena) as connection:
        told, descriptor = exchange(connection, arena.token)
        assert told["bytes"] == arena.bytes and told["incarnation"] == arena.incarnation and told["arena"] == arena.arena
        memory = mmap.mmap(descriptor, arena.bytes)
        try:
            yield connection, descriptor, memory
        finally:
            memory.close()
            os.close(descriptor)


@pytest.fixture
def client(stubs, tmp_path):
    daemon = Daemon(tmp_path, "--flush-interval=1h").start()
    client = Client(stubs, daemon)
    yield client
    client.channel.close()
    daemon.stop()


def test_a_token_gives_sealed_memory_of_which_all_pages_are_there(client):
    arena = client.open()
    with mapped(arena) as (_, descriptor, memory):
        assert os.fstat(descriptor).st_size >= arena.bytes and os.fstat(descriptor).st_blocks * 512 >= arena.bytes
        assert fcntl.fcntl(descriptor, F_GET_SEALS) & (SEAL_SHRINK | SEAL_GROW) == SEAL_SHRINK | SEAL_GROW
        for size in (0, 2 * arena.bytes + (4 << 20)):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        client.set("a", 7)
        client.load(arena, "a", row=1)
        assert memory[:BYTES] == bytes(BYTES) and memory[arena.bytes - BYTES:] == b"\x07" * BYTES


@pytest.mark.parametrize("token", [b"", b"0" * 32, b"x", b"\0" * 64, b"y" * 65, b"z" * 4000, b'{"token":1}'], ids=len)
def test_what_is_no_token_is_refused_in_words(client, token):
    arena = client.open()
    with connect(arena) as connection:
        told, descriptor = exchange(connection, token)
        assert told["reason"] == "TOKEN_INVALID" and len(told["message"]) > 20 and descriptor is None
        assert connection.recv(100) == b""  # hung up
    with mapped(arena):
        pass  # the right one is good all the same


def test_a_token_is_good_once(client):
    arena = client.open()
    with mapped(arena), connect(arena) as second:
        told, descriptor = exchange(second, arena.token)
        assert told["reason"] == "TOKEN_INVALID" and descriptor is None


def test_descriptors_that_come_with_a_token_are_not_kept(client):
    arena = client.open()
    before = len(os.listdir(f"/proc/{client.daemon.process.pid}/fd"))
    with connect(arena) as connection, open(os.devnull) as null:
        connection.sendmsg([b"garbage"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()] * 50))])
        assert json.loads(connection.recv(4096))["reason"] == "TOKEN_INVALID"
    eventually(lambda: len(os.listdir(f"/proc/{client.daemon.process.pid}/fd")) <= before)


def test_connections_without_a_token_are_bounded_in_number_and_in_time(client):
    arena = client.open()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(arena)) for _ in range(70)]
        answers = []
        for connection in connections[64:]:
            answers.append(json.loads(connection.recv(4096))["reason"])
        assert answers == ["TOO_MANY_CONNECTIONS"] * 6
        assert json.loads(connections[0].recv(4096))["reason"] == "TOKEN_INVALID"  # it took too long
    with mapped(client.open()):
        pass


def test_a_hang_up_ends_the_lease_and_what_is_mapped_reads_as_zeros(client):
    client.set("a", 7)
    arena = client.open()
    with mapped(arena) as (connection, _, memory):
        client.load(arena, "a")
        assert memory[0] == 7
        connection.close()
        eventually(lambda: memory[0] == 0)
        with pytest.raises(grpc.RpcError) as gone:
            client.load(arena, "a")
        assert gone.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("garbage", [b"x", b"0" * 200_000])
def test_garbage_after_the_token_ends_that_lease_alone(client, garbage):
    client.set("a", 7)
    first, second = client.open(), client.open()
    with mapped(first) as (connection, _, memory), mapped(second):
        client.load(first, "a")
        with contextlib.suppress(OSError):
            connection.send(garbage[:100_000])
        eventually(lambda: memory[0] == 0)
        client.load(second, "a")


def test_memory_that_is_closed_and_still_mapped_counts_until_it_is_not(client):
    before = client.used_bytes_at_rest()
    arena = client.open()
    with mapped(arena) as (_, descriptor, memory):
        memory[0] = 1
        assert client.close(arena)
        assert memory[0] == 0 and os.fstat(descriptor).st_blocks <= 8  # the page that was just read, at most
        assert client.used_bytes() >= before + arena.bytes
        memory[5] = 5
    eventually(lambda: client.used_bytes() < before + arena.bytes)


def test_memory_that_was_closed_can_not_be_written_to_once_it_does_not_count(client):
    before = client.used_bytes_at_rest()
    arena = client.open()
    with connect(arena) as connection:
        _, descriptor = exchange(connection, arena.token)
        assert client.close(arena)
        assert client.used_bytes() < before + arena.bytes  # nobody had it mapped
        for attempt in (lambda: mmap.mmap(descriptor, arena.bytes), lambda: os.pwrite(descriptor, b"x", 0)):
            with pytest.raises(OSError):
                attempt()
        os.close(descriptor)


WORKER = """
import json, mmap, os, signal, socket, sys, time
path, token, stay = sys.argv[1], sys.argv[2].encode(), sys.argv[3]
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect("\\0" + path[1:] if path.startswith("@") else path)
connection.send(token)
text, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
told = json.loads(text)
if not descriptors:
    print(text.decode(), flush=True)
    sys.exit(3)
memory = mmap.mmap(descriptors[0], told["bytes"])
memory[:] = b"w" * told["bytes"]
if stay == "fork" and os.fork() > 0:
    os.kill(os.getpid(), signal.SIGKILL)
print("mapped", os.getpid(), flush=True)
for line in sys.stdin:
    print(bytes(memory[:16]).hex(), flush=True)
"""


def worker(arena, stay="alone", **options):
    return subprocess.Popen([sys.executable, "-c", WORKER, arena.socket, arena.token.decode(), stay], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True, **options)


def test_memory_comes_back_within_a_second_of_its_worker_s_death(client):
    before = client.used_bytes_at_rest()
    for _ in range(5):
        arena = client.open(rows=20)
        process = worker(arena)
        assert process.stdout.readline().startswith("mapped")
        assert client.used_bytes() >= before + arena.bytes
        process.kill()
        process.wait()
        eventually(lambda: client.used_bytes() < before + arena.bytes, seconds=1.0)


def test_a_stopped_worker_keeps_its_lease(client):
    client.set("a", 7)
    arena = client.open()
    process = worker(arena)
    try:
        assert process.stdout.readline().startswith("mapped")
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        client.load(arena, "a")
        process.send_signal(signal.SIGCONT)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline().strip() == "07" * 16
    finally:
        process.kill()
        process.wait()


def test_a_child_that_outlives_its_worker_sees_zeros_and_never_anyone_else_s_bytes(client):
    client.set("a", 7)
    before = client.used_bytes_at_rest()
    arena = client.open()
    process = worker(arena, "fork")
    process.wait()  # the parent is gone; its child has the mapping, the descriptor and the connection
    child = int(process.stdout.readline().split()[1])
    try:
        eventually(lambda: client.used_bytes() < before + arena.bytes, seconds=1.0)
        other = client.open()
        with mapped(other):
            client.load(other, "a")
            print(file=process.stdin, flush=True)
            assert process.stdout.readline().strip() == "00" * 16
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_gets_no_arena_unless_it_is_named(client, stubs, tmp_path):
    os.chmod(tmp_path, 0o755)
    refused = subprocess.run([sys.executable, "-c", CONNECT_AS, "65534", client.open().socket, "x"], stdout=subprocess.PIPE, text=True)
    assert json.loads(refused.stdout)["reason"] == "PEER_REFUSED"
    # Whoever may not have one takes no place from those who may.
    crowd = subprocess.Popen([sys.executable, "-c", CROWD_AS, "65534", client.open().socket], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert crowd.stdout.readline().strip() == "70"
    with mapped(client.open()):
        pass
    crowd.communicate()
    directory = tmp_path / "named"
    directory.mkdir(mode=0o755)
    path = directory / "arenas.sock"
    daemon = Daemon(directory, "--arena-uids=65533,65534", f"--arena-socket={path}").start()
    other = Client(stubs, daemon)
    try:
        arena = other.open()
        assert arena.socket == str(path)
        told = subprocess.run([sys.executable, "-c", CONNECT_AS, "65534", arena.socket, arena.token.decode()], stdout=subprocess.PIPE, text=True)
        assert json.loads(told.stdout)["arena"] == arena.arena
    finally:
        other.channel.close()
        daemon.stop()


CROWD_AS = """
import os, socket, sys
directory, name = os.path.split(sys.argv[2])
if directory:
    os.chdir(directory)
os.setuid(int(sys.argv[1]))
name = "\\0" + name[1:] if name.startswith("@") else name
connections = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(70)]
for connection in connections:
    connection.connect(name)
print(len(connections), flush=True)
sys.stdin.read()
"""


# The path to the socket may lead through directories that another user can't enter: so it is entered before.
CONNECT_AS = """
import os, socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
directory, name = os.path.split(sys.argv[2])
if directory:
    os.chdir(directory)
os.setuid(int(sys.argv[1]))
name = "\\0" + name[1:] if name.startswith("@") else name
connection.connect(name)
try:
    connection.send(sys.argv[3].encode())
except BrokenPipeError:
    pass  # refused already
print(connection.recv(4096).decode())
"""


def test_cold_states_are_promoted_into_rows_and_rows_are_stored_where_the_budget_is_short(stubs, tmp_path):
    daemon = Daemon(tmp_path, "--hot-bytes=8MiB").start()
    client = Client(stubs, daemon)
    try:
        names = [f"n{i}" for i in range(120)]  # 11.5 MB
        for i, name in enumerate(names):
            client.set(name, i)
        arena = client.open(rows=8)
        pb = client.pb
        with mapped(arena) as (_, _, memory):
            stride = arena.tensors[0].strides[0]
            for first in range(0, len(names), 8):
                loaded = client.stub.Load(pb.LoadRequest(arena=arena.arena, items=[
                    pb.LoadItem(row=row, name=pb.NameRef(sequence=names[first + row])) for row in range(8)]))
                for row in range(8):
                    assert not loaded.rows[row].HasField("error"), loaded.rows[row]
                    assert memory[row * stride:row * stride + BYTES] == bytes([first + row]) * BYTES
                    memory[row * stride] = 255
                stored = client.stub.Store(pb.StoreRequest(arena=arena.arena, all_or_none=True, items=[
                    pb.StoreItem(row=row, sequence=names[first + row], position=2) for row in range(8)]))
                assert stored.done, stored
        for i, name in enumerate(names):
            assert client.stub.Get(pb.GetRequest(name=pb.NameRef(sequence=name))).data == b"\xff" + bytes([i]) * (BYTES - 1)
    finally:
        client.channel.close()
        daemon.stop()


def test_a_socket_that_can_not_be_used_is_refused_at_the_start(stubs, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for path, word in ((file, "no socket"), (tmp_path / "none" / "s", "listen"), (f"/{'x' * 120}", "1..107")):
        daemon = Daemon(tmp_path, f"--arena-socket={path}")
        ran = subprocess.run(daemon.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=30)
        assert ran.returncode == 1 and "--arena-socket" in ran.stderr and word in ran.stderr, ran.stderr
    assert file.read_text() == "mine"


def test_by_default_the_socket_is_no_file(client):
    assert client.stub.GetCapabilities(client.pb.GetCapabilitiesRequest()).arena_socket.startswith("@statepool-")
    assert not [path for path in (client.daemon.directory / "data").rglob("*") if path.is_socket()]


def test_two_daemons_can_not_have_one_name(stubs, tmp_path):
    directories = [tmp_path / "a", tmp_path / "b"]
    for directory in directories:
        directory.mkdir()
    name = f"@statepool-test-{os.getpid()}"
    first = Daemon(directories[0], f"--arena-socket={name}").start()
    try:
        ran = subprocess.run(Daemon(directories[1], f"--arena-socket={name}").command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             timeout=30)
        assert ran.returncode == 1 and "--arena-socket" in ran.stderr
        client = Client(stubs, first)
        arena = client.open()
        assert arena.socket == name
        with mapped(arena):
            pass
        client.channel.close()
    finally:
        first.stop()


def test_a_socket_s_path_is_told_as_an_absolute_one(stubs, tmp_path):
    daemon = Daemon(tmp_path, f"--arena-socket={os.path.relpath(tmp_path / 'arenas')}").start()
    try:
        with grpc.insecure_channel(daemon.address, [("grpc.enable_http_proxy", 0)]) as channel:
            told = stubs.grpc.StatePoolStub(channel).GetCapabilities(stubs.pb.GetCapabilitiesRequest())
            assert os.path.normpath(told.arena_socket) == str(tmp_path / "arenas") and told.arena_socket.startswith("/")
    finally:
        daemon.stop()
