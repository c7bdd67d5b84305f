// A running ledger on real sockets: linking, delivery, healing with two sidecars, reading, and a
// stop that loses nothing.

import Foundation
import Logging
import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

@testable import TollgateLedger

/// A ledger in this process, and how to reach it.
final class RunningLedger: Sendable {
  let directory: TemporaryDirectory
  let task: Task<Void, any Error>
  let endpoints: LedgerEndpoints

  static func start(
    token: String = "secret", in directory: TemporaryDirectory? = nil,
    silence: LedgerSilence = LedgerSilence()
  ) async throws -> RunningLedger {
    let directory = try directory ?? TemporaryDirectory("tg-ledger")
    var configuration = LedgerConfiguration(
      database: directory.file("ledger.sqlite"), listen: ("127.0.0.1", 0),
      unix: directory.file("s"), token: token, graceMilliseconds: 3000)
    configuration.silence = silence
    let stop = LedgerStop()
    let (ready, isReady) = AsyncStream<LedgerEndpoints>.makeStream()
    let task = Task {
      defer { isReady.finish() }
      try await runLedger(
        configuration: configuration,
        logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }, stop: stop
      ) { isReady.yield($0) }
    }
    for await endpoints in ready { return RunningLedger(directory, stop, task, endpoints) }
    try await task.value
    throw CancellationError()
  }

  private init(
    _ directory: TemporaryDirectory, _ stop: LedgerStop, _ task: Task<Void, any Error>,
    _ endpoints: LedgerEndpoints
  ) {
    self.directory = directory
    self.task = task
    self.endpoints = endpoints
    self.stopper = stop
  }
  private let stopper: LedgerStop

  func finish() async throws {
    stopper.stop()
    try await task.value
  }

  func connect(unix: Bool = true) throws -> TestSidecar {
    try TestSidecar(
      unix ? .unix(directory.file("s")) : .tcp("127.0.0.1", UInt16(endpoints.port ?? 0)))
  }

  /// A sidecar that is linked.
  func sidecar(_ name: String, buckets: Int = 4, incarnation: UInt64 = 1) throws -> TestSidecar {
    let sidecar = try connect()
    let welcome = try sidecar.request(Hello(role: .ledger, client: "test", token: "secret"))
    #expect(welcome.header.opcode == .welcome)
    let deployment = Deployment(id: try Name("test"), buckets: buckets, mode: .dev)
    let linked = try sidecar.request(
      Link(deployment: deployment, sidecar: try Name(name), incarnation: incarnation))
    #expect(linked.header.opcode == .linked)
    return sidecar
  }
}

/// One blocking connection that speaks frames.
final class TestSidecar {
  private let descriptor: Int32
  private var decoder = FrameDecoder(frameBytesMax: WireLimits.frameBytesMax)
  private var next: UInt64 = 1
  private var pushes: [Frame] = []

  init(_ endpoint: TestEndpoint) throws { descriptor = try Socket.connect(endpoint) }
  deinit { Socket.close(descriptor) }

  struct Closed: Error {}

  func send(_ message: some OpcodeMessage, correlation: UInt64 = 0, flags: FrameFlags = []) throws {
    var buffer = ByteBuffer()
    buffer.writeFrame(message, correlation: correlation, flags: flags)
    try send(bytes: Array(buffer.readableBytesView))
  }

  func send(bytes: [UInt8]) throws {
    var rest = bytes[...]
    while !rest.isEmpty { rest = rest.dropFirst(try Socket.write(descriptor, rest)) }
  }

  func receive() throws -> Frame {
    while true {
      if let frame = try decoder.next() { return frame }
      guard Socket.wait(descriptor, for: 1, milliseconds: 10_000) else { throw Closed() }
      guard let bytes = try Socket.read(descriptor), !bytes.isEmpty else { throw Closed() }
      decoder.feed(ByteBuffer(bytes: bytes))
    }
  }

  /// Sends until the other side takes no more for a while; answers how much it took, at most `max`.
  func sendUnread(_ bytes: [UInt8], max: Int) throws -> Int {
    Socket.setNonBlocking(descriptor)
    var sent = 0
    while sent < max {
      guard Socket.wait(descriptor, for: 4, milliseconds: 1000) else { break }
      sent += try Socket.write(descriptor, bytes[(sent % bytes.count)...])
    }
    return sent
  }

  /// Sends a request and gives back the first frame of its answer; pushes met on the way are kept.
  func request(_ message: some OpcodeMessage) throws -> Frame {
    next += 1
    let id = next
    try send(message, correlation: id)
    while true {
      let frame = try receive()
      if frame.header.correlation == id { return frame }
      pushes.append(frame)
    }
  }

  func push() throws -> Frame { pushes.isEmpty ? try receive() : pushes.removeFirst() }

  func apply(_ batch: DeltaBatch) throws -> BatchReply { try .decode(try request(batch)) }

  /// RECOVER, and the part of a lone sidecar in what follows.
  func open(_ bucket: UInt32, epoch: Int64 = 0, entries: [OutboxEntry] = []) throws -> EpochNotice {
    try send(Recover(bucket: bucket, epoch: epoch, metaEpoch: 0, metaSequence: 0))
    while true {
      let frame = try push()
      switch frame.header.opcode {
      case .presentRequest:
        let request = try PresentRequest.decode(frame)
        try send(Present(bucket: bucket, epoch: request.epoch, entries: entries))
      case .epoch: return try EpochNotice.decode(frame)
      default: Issue.record("unexpected \(frame.header)")
      }
    }
  }
}

@Suite(.serialized, .blocking) struct LedgerServerTests {
  @Test func deliversOverUnixSocketAndTCP() async throws {
    let ledger = try await RunningLedger.start()
    let sidecar = try ledger.sidecar("one")
    #expect(try sidecar.open(0).epoch == 1)
    let reply = try sidecar.apply(
      DeltaBatch(bucket: 0, epoch: 1, previous: 0, entries: [try usage(1, op: 1, amount: 5)]))
    #expect(reply == BatchReply(status: .ack, bucket: 0, epoch: 1, cursor: 1))
    let tool = try ledger.connect(unix: false)
    _ = try tool.request(Hello(role: .ledger, client: "tool", token: "secret"))
    let answer = try QueryReply.decode(
      try tool.request(QueryRequest(.totals, body: Array(#"{"account":"acme"}"#.utf8))))
    #expect(String(decoding: answer.body, as: UTF8.self).contains(#""charged":5"#))
    try await ledger.finish()
  }

  @Test func eachAnswerOfTheContractReachesTheWire() async throws {
    let ledger = try await RunningLedger.start()
    let sidecar = try ledger.sidecar("one")
    _ = try sidecar.open(0)
    func batch(_ entries: [OutboxEntry], epoch: Int64 = 1) throws -> BatchReply {
      try sidecar.apply(
        DeltaBatch(bucket: 0, epoch: epoch, previous: entries[0].sequence - 1, entries: entries))
    }
    #expect(try batch([try usage(1, op: 1)]).status == .ack)
    let gap = try batch([try usage(5, op: 5)])
    #expect((gap.status, gap.cursor) == (.gap, 1))
    let forked = try batch([try usage(1, op: 9)])
    #expect((forked.status, forked.cursor, forked.lastSequence) == (.forked, 1, 1))
    let duplicate = try batch([try usage(2, op: 1)])
    #expect(duplicate.duplicates == [DeltaID(operation: operation(1), index: 0)])
    #expect(try sidecar.open(0, epoch: 1).epoch == 2)
    let fenced = try batch([try usage(3, op: 3)])
    #expect((fenced.status, fenced.epoch, fenced.lastSequence) == (.fenced, 2, 2))
    try await ledger.finish()
  }

  /// PITFALL 42, of answers: a ledger reads no more from whoever does not read its answers, so what
  /// it holds for a connection is what PROTOCOL, section 11, says.
  @Test func whoeverDoesNotReadIsNotReadFrom() async throws {
    let ledger = try await RunningLedger.start()
    let deaf = try ledger.sidecar("deaf")
    var frames = ByteBuffer()
    for nonce in UInt64(1)...2000 { frames.writeFrame(Ping(nonce: nonce), correlation: nonce) }
    let megabytes = try deaf.sendUnread(Array(frames.readableBytesView), max: 64 << 20) >> 20
    // What the answers fill is 4 MiB and the kernel's buffers, and a ping is no longer than its
    // answer.
    #expect(megabytes < 16, "\(megabytes) MiB of requests were taken")
    let other = try ledger.sidecar("other")
    #expect(try other.open(0).epoch == 1)
    try await ledger.finish()
  }

  @Test func anotherDeploymentIsRefusedNamingBothValues() async throws {
    let ledger = try await RunningLedger.start()
    _ = try ledger.sidecar("one", buckets: 4)
    let other = try ledger.connect()
    _ = try other.request(Hello(role: .ledger, client: "test", token: "secret"))
    let link = Link(
      deployment: Deployment(id: try Name("test"), buckets: 8, mode: .dev),
      sidecar: try Name("two"), incarnation: 1)
    let error = try ErrorReply.decode(try other.request(link))
    #expect(error.code == .deploymentMismatch)
    #expect(error.message.contains("buckets: configured 8, recorded 4"))
    #expect(throws: (any Error).self) { try other.receive() }
    try await ledger.finish()
  }

  @Test func newerIncarnationEndsTheOlderLink() async throws {
    let ledger = try await RunningLedger.start()
    let old = try ledger.sidecar("one", incarnation: 5)
    let new = try ledger.sidecar("one", incarnation: 6)
    #expect(try ErrorReply.decode(try old.receive()).code == .conflict)
    #expect(try new.open(0).epoch == 1)
    let stale = try ledger.connect()
    _ = try stale.request(Hello(role: .ledger, client: "test", token: "secret"))
    let link = Link(
      deployment: Deployment(id: try Name("test"), buckets: 4, mode: .dev),
      sidecar: try Name("one"), incarnation: 5)
    #expect(try ErrorReply.decode(try stale.request(link)).code == .conflict)
    try await ledger.finish()
  }

  @Test func bucketHealsWithWhatTwoSidecarsHold() async throws {
    let ledger = try await RunningLedger.start()
    let one = try ledger.sidecar("one")
    let two = try ledger.sidecar("two")
    _ = try one.open(0)
    #expect(try EpochNotice.decode(try two.push()).epoch == 1)
    _ = try one.apply(
      DeltaBatch(bucket: 0, epoch: 1, previous: 0, entries: [try usage(1, op: 1, amount: 1)]))
    try two.send(Recover(bucket: 0, epoch: 1, metaEpoch: 1, metaSequence: 4))
    for (sidecar, entry) in [
      (one, try usage(2, op: 2, amount: 2)), (two, try usage(3, op: 3, amount: 4)),
    ] {
      let request = try PresentRequest.decode(try sidecar.push())
      #expect(request == PresentRequest(bucket: 0, epoch: 1, cursor: 1))
      try sidecar.send(Present(bucket: 0, epoch: 1, entries: [entry]))
    }
    let notice = EpochNotice(
      bucket: 0, epoch: 2, opener: try Name("two"), previousEpoch: 1, previousLast: 4)
    #expect(try EpochNotice.decode(try one.push()) == notice)
    #expect(try EpochNotice.decode(try two.push()) == notice)
    let status = try QueryReply.decode(try one.request(QueryRequest(.status, body: [])))
    #expect(String(decoding: status.body, as: UTF8.self).contains(#""lostSequences":1"#))
    let balances = try BalancesReply.decode(
      try one.request(BalancesRequest(account: try Subject("acme"), since: november.start)))
    #expect(balances.balances.filter { $0.window == .month }.map(\.settled) == [7])
    try await ledger.finish()
  }

  @Test func sidecarThatDoesNotAnswerDelaysNoLongerThanTheWindow() async throws {
    let ledger = try await RunningLedger.start()
    let one = try ledger.sidecar("one")
    let silent = try ledger.sidecar("silent")
    _ = try one.open(0)
    let clock = ContinuousClock()
    let began = clock.now
    #expect(try one.open(0, epoch: 1).epoch == 2)
    #expect(clock.now - began >= .nanoseconds(RecoveryMachine.windowNanoseconds))
    withExtendedLifetime(silent) {}
    try await ledger.finish()
  }

  @Test func configurationIsServedBack() async throws {
    let ledger = try await RunningLedger.start()
    let sidecar = try ledger.sidecar("one")
    _ = try sidecar.open(4)
    _ = try sidecar.apply(
      DeltaBatch(
        bucket: 4, epoch: 1, previous: 0,
        entries: [change(1, op: 1, scope: .global, key: "", version: 7, after: "{\"g\":7}")]))
    let global = try ConfigReply.decode(try sidecar.request(ConfigRequest(account: nil)))
    #expect(global.version == 7)
    #expect(global.document == Array("{\"g\":7}".utf8))
    let none = try ConfigReply.decode(
      try sidecar.request(ConfigRequest(account: try Subject("nobody"))))
    #expect(none.version == 0)
    let history = try QueryReply.decode(
      try sidecar.request(QueryRequest(.configHistory, body: Array(#"{"scope":"global"}"#.utf8))))
    #expect(String(decoding: history.body, as: UTF8.self).contains(#""actor":"ops""#))
    try await ledger.finish()
  }

  @Test func documentsThatMakeNoSenseAreRefusedByName() async throws {
    let ledger = try await RunningLedger.start()
    let tool = try ledger.connect()
    _ = try tool.request(Hello(role: .ledger, client: "tool", token: "secret"))
    for (method, body) in [
      (1, "nonsense"), (1, #"{"cursor":"x"}"#),
      (1, #"{"accounts":[],"partsSince":0}"#), (1, #"{"accounts":["a"]}"#),
      (1, #"{"accounts":["a1","a2","a3","a4","a5"],"partsSince":0}"#), (2, "{}"),
      (3, #"{"scope":"x"}"#),
      (4, #"{"ids":["x"]}"#), (4, "{}"), (99, "{}"),
    ] {
      let reply = try tool.request(QueryRequest(rawMethod: UInt16(method), body: Array(body.utf8)))
      let error = try ErrorReply.decode(reply)
      #expect(error.code == (method == 99 ? .notFound : .invalidDocument), "\(method) \(body)")
    }
    try await ledger.finish()
  }

  @Test func garbageEndsItsConnectionAndNoOther() async throws {
    let ledger = try await RunningLedger.start()
    let good = try ledger.sidecar("one")
    var random = Seeded(7)
    print("garbage seed 7")
    for _ in 0..<50 {
      let bad = try ledger.connect()
      try? bad.send(
        bytes: (0..<Int.random(in: 24...300, using: &random)).map { _ in
          UInt8.random(in: 0...255, using: &random)
        })
      let error = try ErrorReply.decode(try bad.receive())
      #expect([.badFrame, .unsupportedVersion, .frameTooLarge].contains(error.code))
    }
    #expect(try good.open(0).epoch == 1)
    try await ledger.finish()
  }

  @Test func stopAnswersWhatWasTakenAndStartsAgainWithIt() async throws {
    let directory = try TemporaryDirectory("tg-ledger")
    let ledger = try await RunningLedger.start(in: directory)
    let sidecar = try ledger.sidecar("one")
    _ = try sidecar.open(0)
    for number in 1...20 {
      try sidecar.send(
        DeltaBatch(
          bucket: 0, epoch: 1, previous: Int64(number - 1),
          entries: [try usage(Int64(number), op: number)]), correlation: UInt64(100 + number))
    }
    // The last request is answered, so all were taken before the stop is told.
    var acknowledged: Int64 = 0
    while acknowledged < 1 { acknowledged = try BatchReply.decode(try sidecar.receive()).cursor }
    try await ledger.finish()
    while let frame = try? sidecar.receive() {
      if frame.header.opcode == .batchReply {
        acknowledged = max(acknowledged, try BatchReply.decode(frame).cursor)
      }
    }
    let again = try await RunningLedger.start(in: directory)
    let linked = try again.connect()
    _ = try linked.request(Hello(role: .ledger, client: "test", token: "secret"))
    let answer = try Linked.decode(
      try linked.request(
        Link(
          deployment: Deployment(id: try Name("test"), buckets: 4, mode: .dev),
          sidecar: try Name("one"), incarnation: 2)))
    #expect(answer.buckets == [.init(bucket: 0, epoch: 1, cursor: acknowledged)])
    try await again.finish()
  }
}
