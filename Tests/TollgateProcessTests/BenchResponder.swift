// A tiny server of our protocol for the generator's tests: one thread, blocking sockets, and a
// script of misbehaviour. It counts each operation id once, as a sidecar would.

import Foundation
import NIOConcurrencyHelpers
import NIOCore
import Synchronization
import TollgateCore
import TollgateTesting
import TollgateWire

final class BenchResponder: Sendable {
  struct Behaviour: Sendable {
    /// Every n-th request is answered OVERLOADED, without effect; 0: never.
    var overloadEvery = 0
    /// Every n-th request is applied, and then the connection is cut instead of an answer.
    var cutEvery = 0
    /// Every n-th request is applied and answered OUTCOME_UNKNOWN.
    var unknownEvery = 0
    /// Units of each subject that are admitted; then QUOTA_EXCEEDED.
    var allowance = Int64.max
    /// Milliseconds for which the 50th request, and all behind it, wait for their answer.
    var stallMilliseconds = 0
  }

  struct State: Sendable {
    var records: [OperationID: Bool] = [:]
    var settled: [String: Int64] = [:]
    var requests = 0
  }

  let directory: TemporaryDirectory
  let path: String
  let state = NIOLockedValueBox(State())
  private let behaviour: Behaviour
  private let listener: Int32
  private let stopping = Atomic<Bool>(false)

  init(_ behaviour: Behaviour = Behaviour()) throws {
    self.behaviour = behaviour
    directory = try TemporaryDirectory("tg-bench")
    path = directory.file("s")
    listener = try Socket.listen(.unix(path))
    let thread = Thread { [listener, weak self] in
      while true {
        guard let self, !self.stopping.load(ordering: .relaxed) else { return }
        guard Socket.wait(listener, for: Int32(POLLIN), milliseconds: 100) else { continue }
        let socket = accept(listener, nil, nil)
        guard socket >= 0 else { continue }
        Thread { [weak self] in
          self?.serve(socket)
          close(socket)
        }.start()
      }
    }
    thread.start()
  }

  func stop() { stopping.store(true, ordering: .relaxed) }

  deinit { close(listener) }

  func settled(_ subject: String) -> Int64 { state.withLockedValue { $0.settled[subject] ?? 0 } }
  var operations: Int { state.withLockedValue { $0.records.count } }
  var total: Int64 { state.withLockedValue { $0.settled.values.reduce(0, +) } }

  private func serve(_ socket: Int32) {
    var decoder = FrameDecoder(frameBytesMax: WireLimits.dataFrameBytesMax)
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    var hasStalled = false
    while true {
      let n = unsafe read(socket, &chunk, chunk.count)
      guard n > 0 else { return }
      decoder.feed(ByteBuffer(bytes: chunk[..<n]))
      var out = ByteBuffer()
      do {
        while let frame = try decoder.next() {
          guard try answer(frame, &out) else { return }
        }
      } catch {
        return
      }
      if !hasStalled && behaviour.stallMilliseconds > 0
        && state.withLockedValue({ $0.requests >= 50 })
      {
        hasStalled = true
        usleep(UInt32(behaviour.stallMilliseconds) * 1000)
      }
      var bytes = Array(out.readableBytesView)
      while !bytes.isEmpty {
        let sent = unsafe send(socket, bytes, bytes.count, Int32(MSG_NOSIGNAL))
        guard sent > 0 else { return }
        bytes.removeFirst(sent)
      }
    }
  }

  /// False: cut the connection.
  private func answer(_ frame: Frame, _ out: inout ByteBuffer) throws -> Bool {
    let correlation = frame.header.correlation
    if frame.header.opcode == .hello {
      out.writeFrame(
        Welcome(
          role: .check, deployment: try Name("test"), sidecar: try Name("responder"),
          frameBytesMax: 65_536, inFlightMax: 1024, defaultDeadlineMilliseconds: 1000,
          maxDeadlineMilliseconds: 1000, idleTimeoutMilliseconds: 0,
          time: WallTime(milliseconds: 0), globalVersion: 1, policies: []),
        correlation: correlation)
      return true
    }
    var replies: [DecisionRecord] = []
    for record in try OperationBatch.decode(frame).records {
      guard let reply = decide(record) else { return false }
      replies.append(reply)
    }
    out.writeFrame(DecisionBatch(replies), correlation: correlation)
    return true
  }

  /// nil: cut the connection, without an answer to anything in the frame.
  private func decide(_ record: OperationRecord) -> DecisionRecord? {
    state.withLockedValue { state in
      state.requests += 1
      let number = state.requests
      func every(_ n: Int) -> Bool { n > 0 && number % n == 0 }
      if every(behaviour.overloadEvery) { return .error(.overloaded, message: "busy") }
      let known = state.records[record.id]
      let units = record.items[0].amount
      let before = state.settled[record.subject.path] ?? 0
      let isAllowed = known ?? (before <= behaviour.allowance - units)
      if known == nil {
        state.records[record.id] = isAllowed
        if isAllowed { state.settled[record.subject.path] = before + units }
      }
      if every(behaviour.cutEvery) { return nil }
      if every(behaviour.unknownEvery) { return .error(.outcomeUnknown, message: "lost") }
      return .decision(
        Decision(
          reason: isAllowed ? .allowed : .quotaExceeded, source: .redis,
          time: WallTime(milliseconds: 1), replayed: known != nil))
    }
  }
}
