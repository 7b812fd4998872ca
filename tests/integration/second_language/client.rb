# Copyright 2026 The Statepool Authors. SPDX-License-Identifier: Apache-2.0
#
# What a stranger writes who has the .proto files, Debian's ruby-grpc and libxxhash: states in chunks both ways, broken off and gone on with, a
# fork, a batch, and errors with their details. Nothing of Statepool's is in between but the generated stubs.
#
# ruby -I STUBS client.rb ADDRESS THEIRS: reads the sequence THEIRS, which another client wrote, and prints a JSON object of what it saw.
require "fiddle"
require "grpc"
require "json"
require "google/protobuf/well_known_types"
require "google/rpc/error_details_pb"
require "statepool/v1/statepool_services_pb"

include Statepool::V1

LEAF_BYTES = 65_536
CHUNK_BYTES = 1 << 20
STATE_BYTES = 3 * CHUNK_BYTES + 12_345
SEQUENCE = "ruby/one"

XXH3 = Fiddle::Function.new(Fiddle.dlopen("libxxhash.so.0")["XXH3_64bits"], [Fiddle::TYPE_VOIDP, Fiddle::TYPE_SIZE_T], -Fiddle::TYPE_LONG_LONG)

def leaves(data) = (0...data.bytesize).step(LEAF_BYTES).map { |at| [XXH3.call(leaf = data.byteslice(at, LEAF_BYTES), leaf.bytesize)].pack("Q<") }.join

def checksum(data) = format("%016x", XXH3.call(hashes = leaves(data), hashes.bytesize))

def check(what, ok)
  raise "not so: #{what}" unless ok
end

# ErrorInfo and RetryInfo of a google.rpc.Status, by their type.
def details(status)
  known = [Google::Rpc::ErrorInfo, Google::Rpc::RetryInfo]
  status.details.filter_map { |any| (type = known.find { |t| any.is(t) }) && [type, any.unpack(type)] }.to_h
end

def refused
  yield
rescue GRPC::BadStatus => e
  status = Google::Rpc::Status.decode(e.metadata["grpc-status-details-bin"])
  check("the status in the trailer is that of the call", status.code == e.code)
  [status.code, details(status)]
else
  raise "that should have failed"
end

def reason((code, details)) = [code, details[Google::Rpc::ErrorInfo].reason]

class BrokenOff < StandardError; end

# What is kept of an upload, or nil.
def upload(stub, head)
  stub.get_upload(GetUploadRequest.new(sequence: head.sequence, request_id: head.request_id))
rescue GRPC::NotFound
  nil
end

# The messages of a SetStream from `offset` on; the block is called after each.
def chunks(head, data, offset = 0)
  Enumerator.new do |out|
    (offset...data.bytesize).step(CHUNK_BYTES) do |at|
      part = data.byteslice(at, CHUNK_BYTES)
      out << SetChunk.new(head: at == offset ? head : nil, offset: at, checksum: checksum(part), data: part)
      yield if block_given?
    end
  end
end

# All bytes that `get` asks for, a new stream after each `calls_of` chunks; -> [head of the first stream, bytes].
def read(stub, get, calls_of:)
  first = nil
  data = String.new(encoding: Encoding::BINARY)
  until first && data.bytesize == first.data_bytes
    seen = 0
    call = stub.get_stream(GetStreamRequest.new(get: get, offset: data.bytesize, chunk_bytes: CHUNK_BYTES), return_op: true)
    call.execute.each do |chunk|
      if chunk.head && first.nil?
        first = chunk.head
        get.version_id = first.info.version_id
      end
      check("chunks come in order", chunk.offset == data.bytesize)
      check("a chunk is what was sent", chunk.checksum == checksum(chunk.data))
      data << chunk.data
      break if (seen += 1) == calls_of && data.bytesize < first.data_bytes
    end
    call.cancel
  end
  check("the whole is what was stored", first.data_checksum == checksum(data))
  [first, data]
end

address, theirs = ARGV
stub = StatePool::Stub.new(address, :this_channel_is_insecure, timeout: 60)
facts = { "version" => stub.get_capabilities(GetCapabilitiesRequest.new).version }

layout = stub.register_layout(RegisterLayoutRequest.new(alias: "ruby", layout: Layout.new(model_id: "ruby-model", tensors: [
  TensorSpec.new(name: "s", kind: :RECURRENT, layers: [0], dtype: :UINT8, axes: [Axis.new(name: "x", size: STATE_BYTES)])])))
check("the layout's length", layout.state_bytes == STATE_BYTES)

# A write that breaks off after its first chunk and goes on behind that. The daemon knows of the upload before it has the chunk, so the break may
# come too early: then nothing is kept, and it is tried again.
data = Random.new(7).bytes(STATE_BYTES)
head = SetRequest.new(sequence: SEQUENCE, layout: "ruby", position: 42, checksum: checksum(data), attachment: "from ruby", request_id: "ruby-1")
broke_off = lambda do
  sleep 0.01 until upload(stub, head)
  raise BrokenOff
end
kept = nil
until kept
  begin
    stub.set_stream(chunks(head, data, &broke_off))
    raise "that should have broken off"
  rescue BrokenOff, GRPC::BadStatus
    sleep 0.01 while (kept = upload(stub, head)) && kept.expire_time.nil? # so long the daemon takes the broken call for alive
  end
end
check("nothing is visible yet", reason(refused { stub.describe(DescribeRequest.new(name: NameRef.new(sequence: SEQUENCE))) }) == [5, "NEVER_CREATED"])
check("what is to come", kept.total_bytes == STATE_BYTES)
facts["went_on_at"] = kept.received_bytes
info = stub.set_stream(chunks(head, data, kept.received_bytes))
check("what was written", info.position == 42 && info.checksum == checksum(data) && !info.replayed)
check("a repetition is answered, not done", stub.set_stream(chunks(head, data)).tap { |i| check("replayed", i.replayed) }.revision == info.revision)

# Reading it, in one stream and in one for each chunk; and what the other client wrote.
[100, 1].each do |calls_of|
  got, bytes = read(stub, GetRequest.new(name: NameRef.new(sequence: SEQUENCE)), calls_of: calls_of)
  check("what was read", bytes == data && got.attachment == "from ruby" && got.info.revision == info.revision)
end
_, bytes = read(stub, GetRequest.new(name: NameRef.new(sequence: theirs)), calls_of: 2)
facts["theirs"] = checksum(bytes)

forked = stub.fork(ForkRequest.new(source: NameRef.new(sequence: SEQUENCE), children: ["ruby/a", "ruby/b"], request_id: "ruby-2"))
check("children are at the version of their source", forked.version_id == info.version_id && forked.children.map(&:sequence) == ["ruby/a", "ruby/b"])
check("a part of a child", stub.get(GetRequest.new(name: NameRef.new(sequence: "ruby/b"), select: Select.new(tensors: ["s"]))).data == data)

got = stub.batch_get(BatchGetRequest.new(items: %w[ruby/a ruby/never].map { |n| GetRequest.new(name: NameRef.new(sequence: n)) }))
check("an item of a batch", got.items[0].error.nil? && got.data.byteslice(got.items[0].data_offset, got.items[0].response.data_bytes) == data)
check("an item that failed", details(got.items[1].error)[Google::Rpc::ErrorInfo].reason == "NEVER_CREATED")

facts["errors"] = {
  "miss" => refused { stub.get(GetRequest.new(name: NameRef.new(sequence: "ruby/never"))) },
  "conflict" => refused { stub.rollback(RollbackRequest.new(sequence: SEQUENCE, position: 42, if_revision: 1)) },
  "length" => refused { stub.set(SetRequest.new(sequence: SEQUENCE, position: 43, data: "short")) },
  "children" => refused { stub.fork(ForkRequest.new(source: NameRef.new(sequence: SEQUENCE), children: ["ruby/c", "ruby/a"])) }
}.transform_values do |code, found|
  { "code" => code, "domain" => found[Google::Rpc::ErrorInfo].domain, "reason" => found[Google::Rpc::ErrorInfo].reason,
    "metadata" => found[Google::Rpc::ErrorInfo].metadata.to_h }
end
puts JSON.generate(facts.merge("revision" => info.revision, "checksum" => checksum(data)))
