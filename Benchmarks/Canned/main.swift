// A sidecar whose local loops answer every CONSUME and CHECK of one record with the same allowed
// decision: the cost of the transport alone, to be held against a bare echo. It keeps no books, so
// it is built for measuring only (TOLLGATE_BUILD=bench) and never shipped.
//
//   tollgate-canned CONFIG [none]      none: every frame goes to its conversation

import Foundation
import NIOCore
import TollgateCore
import TollgateServer
import TollgateWire

final class CannedPath: FastPath {
  private let frame: [UInt8]

  init() {
    var decision = Decision(
      reason: .allowed, source: .redis, time: WallTime(milliseconds: 1_700_000_000_000),
      globalVersion: 1, accountVersion: 1)
    decision.items = [
      Decision.ItemState(
        limit: try? Name("calls.month"), remaining: 1_000_000, settled: 1000, held: 0, reset: nil)
    ]
    var buffer = ByteBuffer()
    buffer.writeFrame(DecisionBatch([.decision(decision)]), correlation: 1)
    frame = Array(buffer.readableBytesView)
  }

  package func answer(_ asked: borrowing FastFrame, into out: OutBytes) -> Bool {
    let payload = unsafe asked.payload
    guard payload.count >= 4, unsafe payload[0] == 1, unsafe payload[1] == 0 else { return false }
    let room = unsafe out.reserve(frame.count)
    unsafe frame.withUnsafeBytes { unsafe room.copyMemory(from: $0) }
    unsafe room.storeBytes(of: asked.correlation.littleEndian, toByteOffset: 16, as: UInt64.self)
    out.commit(frame.count)
    return true
  }
}

guard CommandLine.arguments.count >= 2,
  let data = FileManager.default.contents(atPath: CommandLine.arguments[1])
else {
  FileHandle.standardError.write(Data("usage: tollgate-canned CONFIG [none]\n".utf8))
  exit(2)
}
let isCanned = CommandLine.arguments.count == 2
try await ServeEntry.run(
  ServeEntry.configuration(
    yaml: String(decoding: data, as: UTF8.self), environment: ProcessInfo.processInfo.environment),
  fastPath: { _ in isCanned ? CannedPath() : nil })
